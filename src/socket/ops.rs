//! From a request to its reply: reads the parameters, calls the use case, encodes what comes of it. One arm per op.
//!
//! To add an op: its name goes into `protocol::frame::Op`, its parameters into `protocol::params`, its use case into
//! `service`, and its arm here.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::Node;
use crate::{
    domain::{Bundles, Caller, DeviceId, EndReason, KeysStatus, Refusal, Session, SessionId, Timestamp, UserId},
    metrics::{self, Asked, Metrics},
    protocol::{
        Code, Codec, Problem,
        frame::{Empty, Failure, Op, Request, RequestId, Success},
        params::{Nothing, accounts, keys, messages},
    },
    service::{Message, Service, Told, Turn},
};

/// What the socket does after it has sent a reply.
#[derive(Debug, Default)]
pub enum After {
    /// Nothing.
    #[default]
    Nothing,
    /// The socket belongs to this session from now on.
    Renewed(Session),
    /// The device's keys changed.
    Published {
        /// What the server holds now.
        status: KeysStatus,
        /// Whether the signed prekey is a new one.
        rotated: bool,
    },
    /// The device has these envelopes; the numbers are sorted.
    Acked(Vec<i64>),
    /// The session ended by the caller's own wish.
    Ended(EndReason),
}

/// A reply, encoded, with what comes after it.
pub struct Outcome {
    /// The frame.
    pub reply: Vec<u8>,
    /// For this socket.
    pub after: After,
    /// For other devices.
    pub told: Told,
    /// The turn of a publish, which is over when the socket has its reply.
    pub turn: Option<Turn>,
}

/// Where a request comes from.
pub struct Origin {
    /// In whose name.
    pub caller: Caller,
    /// The connection's.
    pub epoch: i64,
    /// Its place among the sends or the publishes of the socket, if it is one.
    pub turn: Option<Turn>,
}

/// Runs one request to its reply.
pub async fn run(node: &Node, origin: Origin, codec: Codec, op: Op, request: &Request, frame: Bytes) -> Outcome {
    let began = Instant::now();
    let Origin { caller, epoch, turn } = origin;
    let mut effects = Effects::default();
    let service = &node.service;
    let call = Call { service, caller, epoch, turn, codec, request, frame: &frame, effects: &mut effects };
    let reply = match call.dispatch(op).await {
        Ok(reply) => {
            node.metrics.answered(Asked::Op(op), metrics::Outcome::Done);
            reply
        }
        Err(refusal) => failure(&node.metrics, Asked::Op(op), codec, request.id, refusal),
    };
    node.metrics.op_seconds.observe(op, began.elapsed().as_secs_f64());
    Outcome { reply, after: effects.after, told: effects.told, turn: effects.turn }
}

/// Encodes an error reply and counts it.
pub fn failure(metrics: &Metrics, asked: Asked, codec: Codec, id: RequestId, refusal: Refusal) -> Vec<u8> {
    let problem = Problem::from(refusal);
    metrics.answered(asked, metrics::Outcome::Refused(problem.code()));
    if problem.code() == Code::Internal {
        tracing::error!("an op failed for a reason of the server's own");
    }
    encode(codec, &Failure { id, error: &problem })
}

/// Encodes a frame of ours.
pub fn encode(codec: Codec, frame: &impl Serialize) -> Vec<u8> {
    codec.encode(frame).unwrap_or_else(|error| {
        // Every type of the protocol has an encoding; an empty frame would still tell the client that something broke.
        tracing::error!(%error, "a frame has no encoding");
        Vec::new()
    })
}

#[derive(Default)]
struct Effects {
    after: After,
    told: Told,
    turn: Option<Turn>,
}

struct Call<'a> {
    service: &'a Service,
    caller: Caller,
    epoch: i64,
    turn: Option<Turn>,
    codec: Codec,
    request: &'a Request,
    frame: &'a [u8],
    effects: &'a mut Effects,
}

impl<'a> Call<'a> {
    async fn dispatch(self, op: Op) -> Result<Vec<u8>, Refusal> {
        match op {
            Op::SessionRenew => self.renew().await,
            Op::SessionLogout => self.logout().await,
            Op::DevicesList => self.list_devices().await,
            Op::DevicesRename => self.rename_device().await,
            Op::DevicesRevoke => self.revoke_device().await,
            Op::UsersFind => self.find_user().await,
            Op::AccountDelete => self.delete_account().await,
            Op::KeysPublish => self.publish().await,
            Op::KeysStatus => self.keys_status().await,
            Op::KeysFetch => self.fetch().await,
            Op::KeysClaim => self.claim().await,
            Op::MessagesSend => self.send().await,
            Op::MessagesAck => self.ack().await,
        }
    }

    fn params<T: Deserialize<'a>>(&self) -> Result<T, Refusal> {
        self.request.params(self.codec, self.frame)
    }

    #[expect(clippy::unnecessary_wraps, reason = "every arm ends with it")]
    fn success(&self, result: &impl Serialize) -> Result<Vec<u8>, Refusal> {
        Ok(encode(self.codec, &Success { id: self.request.id, result }))
    }

    async fn renew(self) -> Result<Vec<u8>, Refusal> {
        #[derive(Serialize)]
        struct Renewed {
            token: String,
            expires_at: Timestamp,
            session_id: SessionId,
        }
        self.params::<Nothing>()?;
        let (session, token) = self.service.renew(&self.caller).await?;
        self.effects.after = After::Renewed(session);
        let Session { caller, expires_at } = session;
        self.success(&Renewed { token: token.reveal(), expires_at, session_id: caller.session })
    }

    async fn logout(self) -> Result<Vec<u8>, Refusal> {
        self.params::<Nothing>()?;
        self.effects.told = self.service.logout(&self.caller).await?;
        self.effects.after = After::Ended(EndReason::Logout);
        self.success(&Empty {})
    }

    async fn list_devices(self) -> Result<Vec<u8>, Refusal> {
        #[derive(Serialize)]
        struct List {
            devices: Vec<Listed>,
        }
        #[derive(Serialize)]
        struct Listed {
            device_id: DeviceId,
            name: Option<String>,
            registration_id: u32,
            created_at: Timestamp,
            last_seen: Option<Timestamp>,
            current: bool,
        }
        self.params::<Nothing>()?;
        let devices = self.service.list_devices(&self.caller).await?;
        let listed = devices.into_iter().map(|device| Listed {
            device_id: device.id,
            name: device.name,
            registration_id: device.registration_id,
            created_at: device.created_at,
            last_seen: device.last_seen,
            current: device.id == self.caller.device,
        });
        self.success(&List { devices: listed.collect() })
    }

    async fn rename_device(self) -> Result<Vec<u8>, Refusal> {
        let params: accounts::Rename = self.params()?;
        let device = params.device_id.unwrap_or(self.caller.device);
        self.service.rename_device(&self.caller, device, params.name()?).await?;
        self.success(&Empty {})
    }

    async fn revoke_device(self) -> Result<Vec<u8>, Refusal> {
        let accounts::Revoke { device_id } = self.params()?;
        self.effects.told = self.service.revoke_device(&self.caller, device_id).await?;
        if device_id == self.caller.device {
            self.effects.after = After::Ended(EndReason::DeviceRevoked);
        }
        self.success(&Empty {})
    }

    async fn find_user(self) -> Result<Vec<u8>, Refusal> {
        #[derive(Serialize)]
        struct Found {
            user_id: UserId,
        }
        let params: accounts::Find = self.params()?;
        let user_id = self.service.find_user(&self.caller, &params.email()?).await?;
        self.success(&Found { user_id })
    }

    async fn delete_account(self) -> Result<Vec<u8>, Refusal> {
        self.params::<Nothing>()?;
        self.effects.told = self.service.delete_account(&self.caller).await?;
        self.effects.after = After::Ended(EndReason::AccountDeleted);
        self.success(&Empty {})
    }

    async fn publish(mut self) -> Result<Vec<u8>, Refusal> {
        self.effects.turn = self.turn.take();
        if let Some(turn) = &mut self.effects.turn {
            turn.come().await;
        }
        let params: keys::Publish = self.params()?;
        let rotated = params.rotates_signed_prekey();
        let outcome = self.service.publish(&self.caller, params.into()).await?;
        self.effects.after = After::Published { status: outcome.status.clone(), rotated };
        self.success(&outcome)
    }

    async fn keys_status(self) -> Result<Vec<u8>, Refusal> {
        self.params::<Nothing>()?;
        let status: KeysStatus = self.service.keys_status(&self.caller).await?;
        self.success(&status)
    }

    async fn fetch(self) -> Result<Vec<u8>, Refusal> {
        let params: keys::Fetch = self.params()?;
        let user = params.user_id;
        let devices = params.device_ids()?;
        let bundles: Bundles = self.service.fetch(&self.caller, user, devices.as_deref()).await?;
        self.success(&bundles)
    }

    async fn claim(self) -> Result<Vec<u8>, Refusal> {
        let params: keys::Claim = self.params()?;
        let (user, claim) = (params.user_id, params.claim_id);
        let bundles: Bundles = self.service.claim(self.caller, user, params.device_ids()?, claim).await?;
        self.success(&bundles)
    }

    async fn send(mut self) -> Result<Vec<u8>, Refusal> {
        #[derive(Serialize)]
        struct Sent {
            accepted_at: Timestamp,
            duplicate: bool,
            undelivered: Vec<Undelivered>,
        }
        #[derive(Serialize)]
        struct Undelivered {
            device_id: DeviceId,
            reason: &'static str,
        }
        let message = self.message();
        let mut turn = self.turn.take().ok_or(Refusal::Internal)?;
        turn.come().await;
        let accepted = self.service.send(self.caller, self.epoch, turn, message?).await?;
        let full = |device_id| Undelivered { device_id, reason: Code::MailboxFull.name() };
        let undelivered = accepted.undelivered.into_iter().map(full).collect();
        self.success(&Sent { accepted_at: accepted.accepted_at, duplicate: accepted.duplicate, undelivered })
    }

    fn message(&self) -> Result<Message, Refusal> {
        let params: messages::Send<'_> = self.params()?;
        Ok(Message {
            id: params.message_id,
            to: params.to,
            ephemeral: params.ephemeral(),
            ttl: params.ttl()?,
            envelopes: params.envelopes(self.codec, self.frame)?,
        })
    }

    async fn ack(self) -> Result<Vec<u8>, Refusal> {
        #[derive(Serialize)]
        struct Acked {
            acked: u64,
        }
        let params: messages::Ack = self.params()?;
        let mut seqs = params.seqs()?;
        seqs.sort_unstable();
        let acked = self.service.ack(self.caller, seqs.clone()).await?;
        self.effects.after = After::Acked(seqs);
        self.success(&Acked { acked })
    }
}
