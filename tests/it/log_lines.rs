//! What the log says of a server's life: its start and end, its levels, and an outage without a flood.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::support::{ServerProcess, Services, eventually, http::call, sign_in};

fn entries(server: &ServerProcess) -> Vec<Value> {
    let log = fs::read_to_string(server.path("server.log")).unwrap();
    // A line may be half written when it is read.
    log.split_inclusive('\n').filter_map(|line| serde_json::from_str(line.strip_suffix('\n')?).ok()).collect()
}

fn with<'a>(entries: &'a [Value], message: &str) -> Vec<&'a Value> {
    entries.iter().filter(|entry| entry["fields"]["message"] == message).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_line_says_what_starts_and_the_last_that_it_ended_well() {
    let mut server = ServerProcess::start(&[]).await;
    sign_in(&server, "alice@example.org").await;
    assert!(with(&entries(&server), "stopped").is_empty());
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
async fn a_level_keeps_what_is_below_it_out_of_the_log() {
    for (levels, shown) in [("warn", 0), ("sealwire::http=info,warn", 0), ("info", 1), ("sealwire::app=info,off", 1)] {
        let mut server = ServerProcess::start(&[("RUST_LOG", levels)]).await;
        sign_in(&server, "alice@example.org").await;
        server.terminate().await;
        let mut entries = entries(&server);
        // Where the disk is slow, the database's library says so.
        entries.retain(|entry| entry["target"] != "sqlx::query");
        assert_eq!(with(&entries, "starting").len(), shown, "{levels}");
        if levels == "warn" {
            assert_eq!(entries, Vec::<Value>::new(), "nothing was wrong");
        }
        let requests = with(&entries, "request").len();
        assert_eq!(requests > 0, levels.contains("http") || levels == "info", "{levels}: {requests}");
        assert!(entries.iter().all(|entry| entry["level"] != "DEBUG" && entry["level"] != "TRACE"), "{levels}");
    }
}

#[test]
fn levels_that_are_none_stop_every_command_with_a_line() {
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
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_the_bus_is_two_lines_however_long_it_is() {
    let services = Services::private();
    let server = ServerProcess::start(&[("BUS__URL", &services.redis), ("RUST_LOG", "debug")]).await;
    let is = |status: &'static str| {
        let server = &server;
        eventually(status, move || async move {
            let (_, body) = call(server, reqwest::Method::GET, "/readyz", None, None).await;
            (body["status"] == status).then_some(())
        })
    };
    is("ready").await;
    services.control("kill", "redis").await;
    is("degraded").await;
    eventually("it has tried several times more", || async {
        (with(&entries(&server), "the bus is still down").len() >= 3).then_some(())
    })
    .await;
    services.control("start", "redis").await;
    is("ready").await;
    let entries = entries(&server);
    let down = with(&entries, "the bus is down");
    assert_eq!(down.len(), 1);
    assert!(down[0]["level"] == "WARN" && down[0]["fields"]["error"].is_string(), "{}", down[0]);
    let still = with(&entries, "the bus is still down");
    assert!(
        still.iter().all(|entry| entry["level"] == "DEBUG"),
        "only once a minute for whoever does not ask for more"
    );
    let up = with(&entries, "the bus is up");
    assert_eq!(up.len(), 2);
    assert!(up[0]["fields"].get("down_s").is_none(), "{}", up[0]);
    assert!(up[1]["fields"]["down_s"].as_f64().unwrap() > 0.5, "{}", up[1]);
}
