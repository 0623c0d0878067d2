//! Runs the client in `examples/tour`, which goes through the whole protocol.

#![expect(clippy::unwrap_used, reason = "a panic fails the test")]

use std::{path::PathBuf, process::Command};

use crate::support::{Server, ServerProcess, server::ReservedPort};

/// Returns the path of a compiled example, which `cargo test` puts into a folder beside that of this executable.
pub fn example(name: &str) -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.extend(["examples", name]);
    assert!(path.exists(), "{} is missing: cargo build --example {name}", path.display());
    path
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tour_goes_through_the_whole_protocol_with_two_users_and_three_devices() {
    let server = ServerProcess::start(&[]).await;
    let url = format!("http://{}", server.address());
    let output = Command::new(example("tour")).arg(url).arg("--mail").arg(server.mail()).output().unwrap();
    let (printed, failed) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{printed}{failed}");
    let mut rest = &*printed;
    for line in [
        "\"duplicate\":true",
        "\"waiting\":1",
        "Bob's phone reads: Hello Bob, this is Alice.",
        "devices_mismatch",
        "Alice's phone reads: Hello Alice. Lunch?",
        "\"waiting\":1",
        "Alice's laptop reads: Hello Alice. Lunch?",
        "\"ephemeral\":true",
        "Bob's phone reads: (typing)",
        "That was all of it.",
    ] {
        (_, rest) =
            rest.split_once(line).unwrap_or_else(|| panic!("{line} is missing or in the wrong place:\n{printed}"));
    }
    for name in ["Bob's phone", "Alice's laptop"] {
        let drained = format!("{name} ← {{\"data\":{{}},\"event\":\"mailbox.drained\"}}");
        assert!(printed.contains(&drained), "{printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tour_fails_if_there_is_no_server() {
    let nowhere = ReservedPort::new();
    let output = Command::new(example("tour")).arg(format!("http://{}", nowhere.address)).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("The tour ends here"));
}
