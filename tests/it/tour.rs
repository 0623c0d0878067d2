//! The tour in `examples/tour` is a client that is not ours to bend: it must get through.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::PathBuf, process::Command};

use crate::support::{Server, ServerProcess, server::ReservedPort};

/// The compiled example: `cargo test` puts it into a folder beside that of this executable.
fn tour() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", "tour"]);
    assert!(path.exists(), "{} is missing: cargo build --example tour", path.display());
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn two_people_and_three_devices_get_through_the_whole_protocol() {
    let server = ServerProcess::start(&[]).await;
    let url = format!("http://{}", server.address());
    let output = Command::new(tour()).arg(url).arg("--mail").arg(server.mail()).output().unwrap();
    let (told, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}{failed}");
    let mut rest = &*told;
    for line in [
        "\"duplicate\":true",
        "\"waiting\":1",
        "Bob's phone reads: Hello Bob, this is Alice.",
        "Bob's phone ← {\"data\":{},\"event\":\"mailbox.drained\"}",
        "devices_mismatch",
        "Alice's phone reads: Hello Alice. Lunch?",
        "\"waiting\":1",
        "Alice's laptop reads: Hello Alice. Lunch?",
        "Alice's laptop ← {\"data\":{},\"event\":\"mailbox.drained\"}",
        "\"ephemeral\":true",
        "Bob's phone reads: (typing)",
        "That was all of it.",
    ] {
        (_, rest) = rest.split_once(line).unwrap_or_else(|| panic!("no {line} where it belongs:\n{told}"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tour_fails_where_there_is_no_server() {
    let nowhere = ReservedPort::new();
    let output = Command::new(tour()).arg(format!("http://{}", nowhere.address)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("The tour ends here"));
}
