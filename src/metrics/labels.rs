//! The labels and their values: closed sets, some of them from the protocol's tables.

use sealwire_protocol::{CloseCode, Code, frame::Op, push::PushKind};
use sealwire_push::Reason;

use super::LabelValue;

/// Defines a label as an enum, with the text of each value.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident $text:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            /// All values.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }

        impl LabelValue for $name {
            const COUNT: usize = Self::ALL.len();

            fn index(self) -> usize {
                self as usize
            }

            fn texts() -> Vec<Vec<String>> {
                vec![$(vec![$text.to_owned()],)*]
            }
        }
    };
}

label! {
    /// The version of the server.
    Version {
        /// The version of this build.
        Built env!("CARGO_PKG_VERSION"),
    }
}

label! {
    /// The routes of the HTTP API.
    Route {
        /// `POST /v1/auth/otp`
        Otp "otp",
        /// `POST /v1/auth/verify`
        Verify "verify",
        /// `POST /v1/auth/approval`
        Approval "approval",
        /// `GET /v1/auth/session`
        Session "session",
        /// `DELETE /v1/auth/session`
        Logout "logout",
    }
}

label! {
    /// What happened to proofs of work.
    ProofOutcome {
        /// Offered to a client that has reached a limit.
        Offered "offered",
        /// Accepted for a request beyond a limit.
        Accepted "accepted",
    }
}

label! {
    /// The outcome of a mail.
    MailOutcome {
        /// Accepted by the mail server, or written to the folder or standard output.
        Sent "sent",
        /// Not sent, after all retries.
        Failed "failed",
        /// Dropped because of a limit on unsent mails.
        Dropped "dropped",
    }
}

/// The kind of a push target, and whether the operator trusts its service. Services that clients choose are counted apart,
/// because a client can choose one that fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushRoute {
    /// To a service of Web Push that the operator trusts.
    TrustedWebPush,
    /// To another service of Web Push.
    OtherWebPush,
    /// To APNs.
    Apns,
    /// To FCM.
    Fcm,
}

impl PushRoute {
    /// All values.
    pub const ALL: [Self; 4] = [Self::TrustedWebPush, Self::OtherWebPush, Self::Apns, Self::Fcm];
}

impl LabelValue for PushRoute {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn texts() -> Vec<Vec<String>> {
        let texts = |route| match route {
            Self::TrustedWebPush => ["webpush", "trusted"],
            Self::OtherWebPush => ["webpush", "other"],
            Self::Apns => ["apns", "trusted"],
            Self::Fcm => ["fcm", "trusted"],
        };
        Self::ALL.into_iter().map(|route| texts(route).map(str::to_owned).to_vec()).collect()
    }
}

/// The outcome of a push, with the reason if it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushResult {
    /// The push service has accepted it.
    Accepted,
    /// The push service says that the target does not exist any more.
    Gone,
    /// Too many others were under way. It is tried again.
    Busy,
    /// It was tried again for a day, without success.
    GivenUp,
    /// It failed for now, and is tried again.
    Later(Reason),
    /// The push service does not take it.
    Rejected(Reason),
}

impl PushResult {
    /// All values.
    pub fn all() -> impl Iterator<Item = Self> {
        let later = Reason::ALL.into_iter().map(Self::Later);
        let rejected = Reason::ALL.into_iter().map(Self::Rejected);
        [Self::Accepted, Self::Gone, Self::Busy, Self::GivenUp].into_iter().chain(later).chain(rejected)
    }
}

impl LabelValue for PushResult {
    const COUNT: usize = 4 + 2 * Reason::ALL.len();

    fn index(self) -> usize {
        let position = |reason| Reason::ALL.iter().position(|known| *known == reason).unwrap_or_default();
        match self {
            Self::Accepted => 0,
            Self::Gone => 1,
            Self::Busy => 2,
            Self::GivenUp => 3,
            Self::Later(reason) => 4 + position(reason),
            Self::Rejected(reason) => 4 + Reason::ALL.len() + position(reason),
        }
    }

    fn texts() -> Vec<Vec<String>> {
        let texts = |result| match result {
            Self::Accepted => ["accepted", "none"],
            Self::Gone => ["gone", "none"],
            Self::Busy => ["busy", "none"],
            Self::GivenUp => ["given_up", "none"],
            Self::Later(reason) => ["later", reason.as_str()],
            Self::Rejected(reason) => ["rejected", reason.as_str()],
        };
        Self::all().map(|result| texts(result).map(str::to_owned).to_vec()).collect()
    }
}

impl LabelValue for PushKind {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn texts() -> Vec<Vec<String>> {
        Self::ALL.into_iter().map(|kind| vec![kind.name().to_owned()]).collect()
    }
}

label! {
    /// The limit on unsent mails because of which one was dropped.
    MailDrop {
        /// Its recipient's domain held its share of the places.
        Domain "domain",
        /// The client's network held its share of the places.
        Network "network",
        /// All places were taken.
        Places "places",
        /// The places for mails that wait for their next attempt, or a share of them, were taken.
        Retries "retries",
    }
}

label! {
    /// The state of an unsent mail.
    MailState {
        /// Waits for a connection to the mail server.
        Waiting "waiting",
        /// Is being sent.
        Sending "sending",
        /// Waits for its next attempt.
        Retrying "retrying",
    }
}

label! {
    /// The outcome of a claim for one device.
    ClaimOutcome {
        /// The bundle has a one-time key.
        Claimed "claimed",
        /// The pool is empty.
        Exhausted "exhausted",
        /// The claiming user has reached the drain limit for the device.
        Limited "limited",
    }
}

label! {
    /// The kinds of batches.
    Batch {
        /// Claims.
        Claims "claims",
        /// Sends and acks.
        Mail "mail",
        /// Sends and acks for mailboxes that other transactions keep locked.
        DeferredMail "deferred_mail",
        /// Opened connections.
        Connections "connections",
        /// Closed connections.
        Disconnects "disconnects",
        /// Tokens to look up.
        Tokens "tokens",
        /// Statuses of keys to read.
        Statuses "statuses",
    }
}

label! {
    /// The limits on connections, named by their settings.
    Limit {
        /// On sockets of the node.
        Sockets "max_connections",
        /// On other connections of the node.
        Http "max_http_connections",
        /// On sockets of a client network.
        NetworkSockets "connections_per_network",
        /// On other connections of a client network.
        NetworkHttp "http_connections_per_network",
        /// On the rate of new connections of a client network.
        NetworkConnects "connects_per_network_second",
    }
}

label! {
    /// Why a socket lost its place to a new one.
    SocketShare {
        /// Its user had more sockets than its share.
        User "user",
        /// All places were in use, and its network held most of them.
        Network "network",
    }
}

label! {
    /// Why the operator's listener refused a request.
    AccessDenied {
        /// Its `Host` is not allowed.
        Host "host",
        /// It has no token.
        NoToken "no_token",
        /// It has a wrong token.
        WrongToken "wrong_token",
    }
}

label! {
    /// The state of a database connection.
    PoolState {
        /// In the pool.
        Idle "idle",
        /// In use.
        Busy "busy",
    }
}

label! {
    /// Signals between nodes.
    BusTraffic {
        /// Queued for Redis.
        Published "published",
        /// Received from other nodes.
        Received "received",
        /// Not sent, because the queue to Redis was full.
        Dropped "dropped",
        /// A payload that was received but is not authentic, too old or of another version. Counted once, with all its
        /// signals.
        Rejected "rejected",
    }
}

label! {
    /// A change that a connection had missed.
    Repair {
        /// A newer connection of its device.
        Displaced "displaced",
        /// The logout of its session.
        LoggedOut "logged_out",
        /// The revocation of its device.
        Revoked "device_revoked",
        /// The deletion of its account.
        Deleted "account_deleted",
    }
}

label! {
    /// The two halves of the memory budget.
    Direction {
        /// Large messages being received.
        In "in",
        /// Requests in flight and outboxes.
        Out "out",
    }
}

impl LabelValue for Op {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn texts() -> Vec<Vec<String>> {
        Self::ALL.iter().map(|op| vec![op.name().to_owned()]).collect()
    }
}

impl LabelValue for Code {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn texts() -> Vec<Vec<String>> {
        Self::ALL.iter().map(|code| vec![code.name().to_owned()]).collect()
    }
}

/// The op that a request names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestedOp {
    /// Not an op.
    Unknown,
    /// An op.
    Op(Op),
}

impl RequestedOp {
    /// All values.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Unknown).chain(Op::ALL.iter().copied().map(Self::Op))
    }
}

impl LabelValue for RequestedOp {
    const COUNT: usize = 1 + Op::COUNT;

    fn index(self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::Op(op) => 1 + op.index(),
        }
    }

    fn texts() -> Vec<Vec<String>> {
        std::iter::once(vec!["unknown".to_owned()]).chain(Op::texts()).collect()
    }
}

/// The code of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponseCode {
    /// Success.
    Success,
    /// An error.
    Error(Code),
}

impl LabelValue for ResponseCode {
    const COUNT: usize = 1 + Code::COUNT;

    fn index(self) -> usize {
        match self {
            Self::Success => 0,
            Self::Error(code) => 1 + code.index(),
        }
    }

    fn texts() -> Vec<Vec<String>> {
        std::iter::once(vec!["ok".to_owned()]).chain(Code::texts()).collect()
    }
}

/// How a socket closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// The peer closed it.
    Peer,
    /// The connection was lost without a Close frame.
    Lost,
    /// The server closed it.
    Code(CloseCode),
}

impl Close {
    /// All values, with their texts.
    pub fn all() -> impl Iterator<Item = (Self, String)> {
        let codes = CloseCode::ALL.iter().map(|code| (Self::Code(*code), code.number().to_string()));
        [(Self::Peer, "peer".to_owned()), (Self::Lost, "lost".to_owned())].into_iter().chain(codes)
    }
}

impl LabelValue for Close {
    const COUNT: usize = 2 + CloseCode::ALL.len();

    fn index(self) -> usize {
        match self {
            Self::Peer => 0,
            Self::Lost => 1,
            Self::Code(code) => 2 + CloseCode::ALL.iter().position(|known| *known == code).unwrap_or_default(),
        }
    }

    fn texts() -> Vec<Vec<String>> {
        Self::all().map(|(_, text)| vec![text]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checks that the values, in this order, have the indices from 0.
    fn check_indices<L: LabelValue>(values: impl Iterator<Item = L>) {
        let indices: Vec<usize> = values.map(LabelValue::index).collect();
        assert_eq!(indices, (0..L::COUNT).collect::<Vec<_>>());
        assert_eq!(L::texts().len(), L::COUNT);
    }

    #[test]
    fn every_label_value_has_its_own_index_and_text() {
        check_indices(Op::ALL.iter().copied());
        check_indices(Code::ALL.iter().copied());
        check_indices(RequestedOp::all());
        check_indices(Close::all().map(|(close, _)| close));
        check_indices(std::iter::once(ResponseCode::Success).chain(Code::ALL.iter().copied().map(ResponseCode::Error)));
        check_indices(Repair::ALL.iter().copied());
        check_indices(Limit::ALL.iter().copied());
        check_indices(AccessDenied::ALL.iter().copied());
        check_indices(PushRoute::ALL.into_iter());
        check_indices(PushResult::all());
        check_indices(PushKind::ALL.into_iter());
    }
}
