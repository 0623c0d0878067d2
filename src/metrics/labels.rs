//! The labels and their values: closed sets, most of them out of the protocol's tables.

use sealwire_protocol::{CloseCode, Code, frame::Op};

use super::Label;

/// A label whose values are an enum's, each with its text.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident $text:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$of])* $variant,)* }

        impl $name {
            /// Every value.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
        }

        impl Label for $name {
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
    /// The version that runs.
    Version {
        /// The one that was built.
        Built env!("CARGO_PKG_VERSION"),
    }
}

label! {
    /// The HTTP requests of clients.
    Route {
        /// `POST /v1/auth/otp`
        Otp "otp",
        /// `POST /v1/auth/verify`
        Verify "verify",
        /// `GET /v1/auth/session`
        Session "session",
        /// `DELETE /v1/auth/session`
        Logout "logout",
    }
}

label! {
    /// What became of a mail.
    MailEnd {
        /// The mail server, the folder or standard output has it.
        Sent "sent",
        /// Given up.
        Failed "failed",
        /// The queue was full.
        Dropped "dropped",
    }
}

label! {
    /// What a claim got from one device.
    ClaimEnd {
        /// A key of its own.
        Claimed "claimed",
        /// The pool is empty.
        Exhausted "exhausted",
        /// The claimer is past the drain limit.
        Limited "limited",
    }
}

label! {
    /// Requests that share transactions.
    Batch {
        /// Claims.
        Claims "claims",
        /// Sends and acks.
        Mail "mail",
        /// Connections that open.
        Connections "connections",
        /// Connections that ended.
        Disconnects "disconnects",
    }
}

label! {
    /// The limits on connections, by their settings.
    Limit {
        /// Of the node, on sockets.
        Sockets "max_connections",
        /// Of the node, on connections that are no sockets.
        Http "max_http_connections",
        /// Of a network, on sockets.
        NetworkSockets "connections_per_network",
        /// Of a network, on connections that are no sockets.
        NetworkHttp "http_connections_per_network",
        /// Of a network, on new connections.
        NetworkConnects "connects_per_network_second",
    }
}

label! {
    /// Why the operator's listener refused a request.
    AccessDenied {
        /// It named the server by an unknown name.
        Host "host",
        /// It had no token.
        NoToken "no_token",
        /// It had a wrong token.
        WrongToken "wrong_token",
    }
}

label! {
    /// What a database connection does.
    PoolState {
        /// Nothing.
        Idle "idle",
        /// It was handed out.
        Busy "busy",
    }
}

label! {
    /// Signals between nodes.
    BusTraffic {
        /// Handed to the link.
        Published "published",
        /// Of other nodes.
        Received "received",
        /// The link had fallen behind.
        Dropped "dropped",
    }
}

label! {
    /// What a connection had not heard of.
    Repair {
        /// A newer connection of its device.
        Displaced "displaced",
        /// The end of its session.
        LoggedOut "logged_out",
        /// The revocation of its device.
        Revoked "device_revoked",
        /// The end of its account.
        Deleted "account_deleted",
    }
}

label! {
    /// The two halves of the memory budget.
    Direction {
        /// Large messages that come in.
        In "in",
        /// Requests in flight, and what waits in outboxes.
        Out "out",
    }
}

impl Label for Op {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn texts() -> Vec<Vec<String>> {
        Self::ALL.iter().map(|op| vec![op.name().to_owned()]).collect()
    }
}

impl Label for Code {
    const COUNT: usize = Self::ALL.len();

    fn index(self) -> usize {
        self as usize
    }

    fn texts() -> Vec<Vec<String>> {
        Self::ALL.iter().map(|code| vec![code.name().to_owned()]).collect()
    }
}

/// What a request asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Something that is no op.
    Unknown,
    /// An op.
    Op(Op),
}

impl Asked {
    /// Every value.
    pub fn all() -> impl Iterator<Item = Self> {
        std::iter::once(Self::Unknown).chain(Op::ALL.iter().copied().map(Self::Op))
    }
}

impl Label for Asked {
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

/// How a request was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Well.
    Done,
    /// With an error.
    Refused(Code),
}

impl Label for Outcome {
    const COUNT: usize = 1 + Code::COUNT;

    fn index(self) -> usize {
        match self {
            Self::Done => 0,
            Self::Refused(code) => 1 + code.index(),
        }
    }

    fn texts() -> Vec<Vec<String>> {
        std::iter::once(vec!["ok".to_owned()]).chain(Code::texts()).collect()
    }
}

/// How a socket ended.
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
    /// Every value, with its text.
    pub fn all() -> impl Iterator<Item = (Self, String)> {
        let codes = CloseCode::ALL.iter().map(|code| (Self::Code(*code), code.number().to_string()));
        [(Self::Peer, "peer".to_owned()), (Self::Lost, "lost".to_owned())].into_iter().chain(codes)
    }
}

impl Label for Close {
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

    fn holds<L: Label>(values: impl Iterator<Item = L>) {
        let indices: Vec<usize> = values.map(Label::index).collect();
        assert_eq!(indices, (0..L::COUNT).collect::<Vec<_>>());
        assert_eq!(L::texts().len(), L::COUNT);
    }

    #[test]
    fn every_value_has_its_place() {
        holds(Op::ALL.iter().copied());
        holds(Code::ALL.iter().copied());
        holds(Asked::all());
        holds(Close::all().map(|(close, _)| close));
        holds(std::iter::once(Outcome::Done).chain(Code::ALL.iter().copied().map(Outcome::Refused)));
        holds(Repair::ALL.iter().copied());
        holds(Limit::ALL.iter().copied());
        holds(AccessDenied::ALL.iter().copied());
    }
}
