//! The log of a server: its start and end, the levels, and an outage without a flood of lines.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::support::{ServerProcess, Services, eventually, http::call, sign_in};

/// Returns the complete lines of the server's log.
pub fn entries(server: &ServerProcess) -> Vec<Value> {
    let log = fs::read_to_string(server.path("server.log")).unwrap();
    // A line may be half written when it is read.
    log.split_inclusive('\n').filter_map(|line| serde_json::from_str(line.strip_suffix('\n')?).ok()).collect()
}

fn with_message<'a>(entries: &'a [Value], message: &str) -> Vec<&'a Value> {
    entries.iter().filter(|entry| entry["fields"]["message"] == message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_line_describes_the_server_and_the_last_says_that_it_stopped() {
    let mut server = ServerProcess::start(&[]).await;
    sign_in(&server, "alice@example.org").await;
    assert!(with_message(&entries(&server), "stopped").is_empty());
    assert!(server.terminate().await.success());
    let entries = entries(&server);
    let fields = &entries[0]["fields"];
    assert_eq!(fields["message"], "starting");
    assert_eq!(fields["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&fields["database"], &fields["bus"]), (&"sqlite".into(), &"local".into()));
    assert!(fields["node_id"].is_string());
    assert_eq!(entries.last().unwrap()["fields"]["message"], "stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_below_the_log_level_are_not_logged() {
    for (levels, shown) in [("warn", 0), ("sealwire::http=info,warn", 0), ("info", 1), ("sealwire::app=info,off", 1)] {
        let mut server = ServerProcess::start(&[("RUST_LOG", levels)]).await;
        sign_in(&server, "alice@example.org").await;
        server.terminate().await;
        let mut entries = entries(&server);
        // On a slow disk, sqlx logs slow statements.
        entries.retain(|entry| entry["target"] != "sqlx::query");
        assert_eq!(with_message(&entries, "starting").len(), shown, "{levels}");
        if levels == "warn" {
            assert_eq!(entries, Vec::<Value>::new(), "nothing was wrong");
        }
        let requests = with_message(&entries, "request").len();
        assert_eq!(requests > 0, levels.contains("http") || levels == "info", "{levels}: {requests}");
        assert!(entries.iter().all(|entry| entry["level"] != "DEBUG" && entry["level"] != "TRACE"), "{levels}");
    }
}

#[test]
fn an_invalid_log_level_stops_every_command_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    for command in ["serve", "check-config", "migrate"] {
        for levels in ["info,[bad", "wran"] {
            let output = Command::new(Path::new(env!("CARGO_BIN_EXE_sealwire")))
                .arg(command)
                .env("RUST_LOG", levels)
                .current_dir(folder.path())
                .output()
                .unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(said.starts_with("sealwire: RUST_LOG takes ") && said.lines().count() == 1, "{said}");
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "no file was created");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bus_outage_of_any_length_logs_one_line_at_its_start_and_one_at_its_end() {
    let services = Services::private();
    let server = ServerProcess::start(&[("BUS__URL", &services.redis), ("RUST_LOG", "debug")]).await;
    let wait_for_status = |status: &'static str| {
        let server = &server;
        eventually(status, move || async move {
            let (_, body) = call(server, reqwest::Method::GET, "/readyz", None, None).await;
            (body["status"] == status).then_some(())
        })
    };
    wait_for_status("ready").await;
    services.control("kill", "redis").await;
    wait_for_status("degraded").await;
    eventually("the server has tried to reconnect several times", || async {
        (with_message(&entries(&server), "the bus is still down").len() >= 3).then_some(())
    })
    .await;
    services.control("start", "redis").await;
    wait_for_status("ready").await;
    let entries = entries(&server);
    let down = with_message(&entries, "the bus is down");
    assert_eq!(down.len(), 1);
    assert!(down[0]["level"] == "WARN" && down[0]["fields"]["error"].is_string(), "{}", down[0]);
    let still = with_message(&entries, "the bus is still down");
    assert!(still.iter().all(|entry| entry["level"] == "DEBUG"), "failed attempts are warnings at most once a minute");
    let up = with_message(&entries, "the bus is up");
    assert_eq!(up.len(), 2);
    assert!(up[0]["fields"].get("down_s").is_none(), "{}", up[0]);
    assert!(up[1]["fields"]["down_s"].as_f64().unwrap() > 0.5, "{}", up[1]);
}
