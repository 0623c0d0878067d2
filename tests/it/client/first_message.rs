//! The example of the README.

use std::{
    io::{BufRead, BufReader, Write},
    process::Stdio,
};

use super::{Device, new_code};
use crate::support::{Server, TestApp, server::child_command};

#[tokio::test(flavor = "multi_thread")]
async fn the_example_in_the_readme_sends_a_first_message() {
    let app = TestApp::start(&[]);
    let mut bob = Device::join(&app, "bob@example.org").await;
    let folder = tempfile::tempdir().unwrap();
    let url = format!("http://{}", app.address());
    // The second run finds its session, and sends another message.
    for run in ["first", "second"] {
        let mut example = child_command(crate::tour::example("first_message"))
            .args([&url, "alice@example.org", "bob@example.org"])
            .current_dir(folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        if run == "first" {
            let mut question = String::new();
            BufReader::new(example.stdout.take().unwrap()).read_line(&mut question).unwrap();
            assert_eq!(question, "The code in the mail: \n");
            let code = new_code(app.mail(), "alice@example.org", &[]).await;
            writeln!(example.stdin.take().unwrap(), "{code}").unwrap();
        }
        assert_eq!(bob.reads().await, "Hello!", "{run}");
        example.kill().unwrap();
        example.wait().unwrap();
    }
}
