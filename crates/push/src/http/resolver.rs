//! Looks up the addresses of host names.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    pin::Pin,
    sync::Arc,
};

use tokio::{sync::Semaphore, task};

/// The result of a look-up: all addresses of a name.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;

/// Looks up host names. Called once for every connection to a name; the sender checks the addresses.
pub trait Resolve: Send + Sync + 'static {
    /// Looks up the addresses of `name`.
    fn resolve(&self, name: &str) -> Resolving;
}

/// The resolver of the operating system. It blocks a thread for each look-up, for as long as its configuration says, so
/// the number of look-ups at a time is limited.
#[derive(Clone, Debug)]
pub struct SystemResolver {
    look_ups: Arc<Semaphore>,
}

impl SystemResolver {
    /// A resolver for at most `look_ups` look-ups at a time. Others wait.
    #[must_use]
    pub fn new(look_ups: usize) -> Self {
        Self { look_ups: Arc::new(Semaphore::new(look_ups)) }
    }
}

impl Resolve for SystemResolver {
    fn resolve(&self, name: &str) -> Resolving {
        let (look_ups, name) = (Arc::clone(&self.look_ups), name.to_owned());
        Box::pin(async move {
            let permit = look_ups.acquire_owned().await.map_err(io::Error::other)?;
            let look_up = move || {
                // Kept until the thread is free, even if nobody waits for the result any more.
                let _permit = permit;
                let addresses = (name.as_str(), 0).to_socket_addrs()?;
                Ok(addresses.map(|address| address.ip()).collect())
            };
            task::spawn_blocking(look_up).await.map_err(io::Error::other)?
        })
    }
}
