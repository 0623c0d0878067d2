//! From a request to its reply: reads the parameters, calls the use case, encodes what comes of it. One arm per op.
//!
//! To add an op: its name goes into `protocol::frame::Op`, its parameters into `protocol::params`, its use case into
//! `service`, and its arm here.

use bytes::Bytes;
use serde::Serialize;

use crate::{
    domain::{Bundles, Caller, DeviceId, EndReason, KeysStatus, Refusal, Session, SessionId, Timestamp, UserId},
    protocol::{
        Code, Codec, Problem,
        frame::{Empty, Failure, Op, Request, RequestId, Success},
        params,
    },
    service::{Service, Told},
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
}

/// Runs one request to its reply.
pub async fn run(service: &Service, caller: Caller, codec: Codec, op: Op, request: &Request, frame: Bytes) -> Outcome {
    let mut effects = Effects::default();
    let call = Call { service, caller, codec, request, frame: &frame, effects: &mut effects };
    let reply = match call.dispatch(op).await {
        Ok(reply) => reply,
        Err(refusal) => failure(codec, request.id, refusal),
    };
    Outcome { reply, after: effects.after, told: effects.told }
}

/// Encodes an error reply.
pub fn failure(codec: Codec, id: RequestId, refusal: Refusal) -> Vec<u8> {
    let problem = Problem::from(refusal);
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
}

struct Call<'a> {
    service: &'a Service,
    caller: Caller,
    codec: Codec,
    request: &'a Request,
    frame: &'a [u8],
    effects: &'a mut Effects,
}

impl Call<'_> {
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
        }
    }

    fn params<T: serde::de::DeserializeOwned>(&self) -> Result<T, Refusal> {
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
        self.params::<params::Nothing>()?;
        let (session, token) = self.service.renew(&self.caller).await?;
        self.effects.after = After::Renewed(session);
        let Session { caller, expires_at } = session;
        self.success(&Renewed { token: token.reveal(), expires_at, session_id: caller.session })
    }

    async fn logout(self) -> Result<Vec<u8>, Refusal> {
        self.params::<params::Nothing>()?;
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
        self.params::<params::Nothing>()?;
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
        let params: params::Rename = self.params()?;
        let device = params.device_id.unwrap_or(self.caller.device);
        self.service.rename_device(&self.caller, device, params.name()?).await?;
        self.success(&Empty {})
    }

    async fn revoke_device(self) -> Result<Vec<u8>, Refusal> {
        let params::Revoke { device_id } = self.params()?;
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
        let params: params::Find = self.params()?;
        let user_id = self.service.find_user(&self.caller, &params.email()?).await?;
        self.success(&Found { user_id })
    }

    async fn delete_account(self) -> Result<Vec<u8>, Refusal> {
        self.params::<params::Nothing>()?;
        self.effects.told = self.service.delete_account(&self.caller).await?;
        self.effects.after = After::Ended(EndReason::AccountDeleted);
        self.success(&Empty {})
    }

    async fn publish(self) -> Result<Vec<u8>, Refusal> {
        let params: params::Publish = self.params()?;
        let rotated = params.rotates_signed_prekey();
        let outcome = self.service.publish(&self.caller, params.into()).await?;
        self.effects.after = After::Published { status: outcome.status.clone(), rotated };
        self.success(&outcome)
    }

    async fn keys_status(self) -> Result<Vec<u8>, Refusal> {
        self.params::<params::Nothing>()?;
        let status: KeysStatus = self.service.keys_status(&self.caller).await?;
        self.success(&status)
    }

    async fn fetch(self) -> Result<Vec<u8>, Refusal> {
        let params: params::Fetch = self.params()?;
        let user = params.user_id;
        let devices = params.device_ids()?;
        let bundles: Bundles = self.service.fetch(&self.caller, user, devices.as_deref()).await?;
        self.success(&bundles)
    }

    async fn claim(self) -> Result<Vec<u8>, Refusal> {
        let params: params::Claim = self.params()?;
        let (user, claim) = (params.user_id, params.claim_id);
        let bundles: Bundles = self.service.claim(self.caller, user, params.device_ids()?, claim).await?;
        self.success(&bundles)
    }
}
