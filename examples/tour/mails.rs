//! The mails of the server: codes, and notices of what happens to an account.

use std::{fs, path::PathBuf, time::Duration};

use tokio::time::{sleep, timeout};

use crate::Outcome;

/// How long a mail may take.
const TIMEOUT: Duration = Duration::from_secs(20);

/// Where mails are read.
pub struct Mails {
    /// The folder to which the server writes them. If it is not known, a person enters the codes.
    pub folder: Option<PathBuf>,
}

impl Mails {
    /// The subjects and bodies of all mails to an address, oldest first. Empty if the folder is unknown.
    pub fn to(&self, email: &str) -> Outcome<Vec<String>> {
        let Some(folder) = &self.folder else { return Ok(vec![]) };
        let mut paths: Vec<PathBuf> = fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Outcome<_>>()?;
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "eml"));
        paths.sort();
        let mut found = Vec::new();
        for path in paths {
            let mail = fs::read_to_string(path)?;
            let (head, body) = mail.split_once("\r\n\r\n").ok_or("a mail has no body")?;
            if head.contains(&format!("To: {email}")) {
                let subject = head.lines().find_map(|line| line.strip_prefix("Subject: ")).unwrap_or_default();
                found.push(format!("{subject}: {}", body.trim().replace("\r\n", " ")));
            }
        }
        Ok(found)
    }

    /// Waits for a mail that fits.
    pub async fn wait(&self, email: &str, fits: impl Fn(&str) -> bool) -> Outcome<String> {
        let wait = async {
            loop {
                match self.to(email)?.into_iter().find(|mail| fits(mail)) {
                    Some(mail) => return Ok(mail),
                    None => sleep(Duration::from_millis(20)).await,
                }
            }
        };
        timeout(TIMEOUT, wait).await.map_err(|_| "no mail arrived in time")?
    }

    /// Waits for a code that is not in the mails of before.
    pub async fn code(&self, email: &str, before: &[String]) -> Outcome<String> {
        if self.folder.is_none() {
            return ask(&format!("      The code that the server printed for {email}: ")).await;
        }
        let is_new = |mail: &str| !before.iter().any(|old| old == mail) && code_in(mail).is_some();
        Ok(code_in(&self.wait(email, is_new).await?).ok_or("the mail has a code")?.to_owned())
    }
}

/// The group of eight digits in a mail.
fn code_in(mail: &str) -> Option<&str> {
    mail.split(|c: char| !c.is_ascii_digit()).find(|digits| digits.len() == 8)
}

async fn ask(question: &str) -> Outcome<String> {
    eprint!("{question}");
    let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next().transpose()).await??;
    Ok(line.ok_or("no code was entered")?.trim().to_owned())
}
