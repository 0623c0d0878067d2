//! What a sender needs to know.

use std::time::Duration;

use ipnet::IpNet;
use tokio_rustls::rustls::pki_types::CertificateDer;

use crate::{apns::ApnsKey, fcm::ServiceAccount, web_push::VapidKey};

/// Settings of a sender. Without the settings of a kind, notifications of that kind are not sent. The default has none.
#[derive(Debug, Default)]
pub struct Settings {
    /// Web Push.
    pub web_push: Option<WebPushSettings>,
    /// APNs.
    pub apns: Option<ApnsSettings>,
    /// FCM.
    pub fcm: Option<FcmSettings>,
    /// Allows requests to loopback addresses, also by `http`. For tests.
    pub allow_insecure: bool,
    /// Networks that no request is sent to, besides those that are not public.
    pub forbidden_networks: Vec<IpNet>,
    /// Services of Web Push that share no places with those that clients choose: a host, a host with a port other than 443, or
    /// `*.` and a domain, in lower case. The default has none.
    pub trusted_services: Vec<String>,
    /// Root certificates that are trusted besides those of the system.
    pub extra_roots: Vec<CertificateDer<'static>>,
    /// How much is under way at a time.
    pub limits: Limits,
}

/// Limits of a sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Notifications that are under way at a time. Half of them can be taken by origins that have not answered reliably, and
    /// three quarters by those that are not trusted.
    pub under_way: usize,
    /// Notifications of one kind that are under way to one origin (scheme, host and port) at a time.
    pub per_origin: usize,
    /// Sends that wait for their turn at a time; further ones are [`Outcome::Busy`](crate::Outcome::Busy) at once.
    /// Half of them can be taken by origins that have not answered reliably, and three quarters by those that are not
    /// trusted.
    pub waiting: usize,
    /// How long a send waits for its turn at most, and then how long the notification takes at most: from the look-up
    /// of the name to the end of the answer.
    pub timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { under_way: 1024, per_origin: 16, waiting: 1024, timeout: Duration::from_secs(10) }
    }
}

/// Settings of Web Push.
#[derive(Debug)]
pub struct WebPushSettings {
    /// Identifies this server to push services (RFC 8292). Subscriptions are bound to it: with another key, all clients
    /// have to subscribe anew.
    pub key: VapidKey,
    /// How operators of push services reach the operator of this server: a `mailto:` or `https:` URL.
    pub subject: String,
}

/// Settings of APNs.
#[derive(Debug)]
pub struct ApnsSettings {
    /// The key from the developer account: a `.p8` file.
    pub key: ApnsKey,
    /// The identifier of the key.
    pub key_id: String,
    /// The identifier of the developer team.
    pub team_id: String,
    /// The URL of the service: [`ApnsSettings::HOST`].
    pub host: String,
    /// The URL of the service for builds for development: [`ApnsSettings::SANDBOX_HOST`].
    pub sandbox_host: String,
    /// What a device shows if the app does not replace it.
    pub alert: String,
}

impl ApnsSettings {
    /// Apple's service.
    pub const HOST: &str = "https://api.push.apple.com";
    /// Apple's service for builds for development.
    pub const SANDBOX_HOST: &str = "https://api.sandbox.push.apple.com";
}

/// Settings of FCM.
#[derive(Debug)]
pub struct FcmSettings {
    /// The service account that sends. It names the project.
    pub account: ServiceAccount,
    /// The URL of the service: [`FcmSettings::HOST`].
    pub host: String,
}

impl FcmSettings {
    /// Google's service.
    pub const HOST: &str = "https://fcm.googleapis.com";
}
