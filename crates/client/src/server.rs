//! A server, and what clients ask of it over HTTP: signing in, checking and ending sessions.

use std::{fmt, future::IntoFuture, pin::Pin, sync::Arc, time::Duration};

use hyper::{Method, StatusCode};
use sealwire_protocol::{
    Codec,
    auth::{CodePurpose, DeviceDescription, OtpReply, OtpRequest, SessionReply, VerifyRequest, device_proof_message},
    ids::{ChallengeId, DeviceId},
    value::{Lenient, Object, Text},
};
use serde::{Deserialize, Serialize};

use crate::{
    approval::{Approval, SignIn},
    error::{HttpError, InvalidUrl},
    http::{Endpoint, Reply, Security, Socket},
    proof_of_work::{MAX_PROOFS, Offer, PaidByProof},
    session::Session,
};

/// How long a request may take, connecting included.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A Sealwire server. Clones are cheap.
#[derive(Clone)]
pub struct Server {
    endpoint: Arc<Endpoint>,
    timeout: Duration,
}

impl Server {
    /// The server at this URL, such as `https://chat.example`. Does not connect. For `https`, the certificates that the
    /// system trusts are read.
    ///
    /// # Errors
    /// If the URL is invalid.
    pub fn new(url: &str) -> Result<Self, InvalidUrl> {
        Ok(Self { endpoint: Arc::new(Endpoint::parse(url, Security::system)?), timeout: TIMEOUT })
    }

    /// Like [`new`](Self::new), with a TLS configuration of the app's.
    ///
    /// # Errors
    /// If the URL is invalid.
    #[cfg(feature = "tls")]
    pub fn with_tls(url: &str, config: tokio_rustls::rustls::ClientConfig) -> Result<Self, InvalidUrl> {
        Ok(Self { endpoint: Arc::new(Endpoint::parse(url, || Security::with(config))?), timeout: TIMEOUT })
    }

    /// Sets how long a request may take, connecting included; 30 seconds if it is not set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Mails a code with which the person signs in. If the server asks for a proof of work, it is computed, which takes
    /// seconds.
    ///
    /// # Errors
    /// `bad_request` if the address is invalid; `rate_limited` after too many codes.
    pub async fn request_code(&self, email: &str) -> Result<Challenge, HttpError> {
        self.request_code_for(email, CodePurpose::SignIn).await
    }

    /// Mails a code for a purpose: to sign in, to delete the account, or to change its address. For the last, `email` is
    /// the new address.
    ///
    /// # Errors
    /// As [`request_code`](Self::request_code).
    pub async fn request_code_for(&self, email: &str, purpose: CodePurpose) -> Result<Challenge, HttpError> {
        let request = OtpRequest { email: text(email, "the address")?, purpose: Some(purpose), proof: None };
        let reply: OtpReply = self.post_with_proof("/v1/auth/otp", request).await?.success(StatusCode::ACCEPTED)?;
        Ok(Challenge {
            id: reply.challenge_id,
            email: email.to_owned(),
            expires_in: Duration::from_secs(reply.expires_in_s),
            resend_in: Duration::from_secs(reply.resend_in_s),
        })
    }

    /// Signs in with a mailed code, in which spaces and dashes are ignored. Await the returned request; before, say which
    /// device signs in. The result is a session or, if the account is locked, a request that another device has to
    /// approve.
    ///
    /// ```no_run
    /// # async fn example(server: sealwire_client::Server) -> Result<(), Box<dyn std::error::Error>> {
    /// use sealwire_client::SignIn;
    ///
    /// let challenge = server.request_code("alice@example.org").await?;
    /// match server.sign_in(&challenge, "1234 5678").device_name("Alice's phone").await? {
    ///     SignIn::Session(session) => println!("signed in as {}", session.user_id),
    ///     SignIn::Approval(approval) => println!("enter {} on another device", approval.number),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// When it is awaited: `invalid_code`, `too_many_attempts`; `device_limit`, with
    /// [devices to replace](HttpError::replaceable_devices); `proof_required` if [`proof`](SignInRequest::proof) is needed;
    /// `unknown_device`, `rate_limited`.
    pub fn sign_in<'a>(&'a self, challenge: &'a Challenge, code: &'a str) -> SignInRequest<'a> {
        SignInRequest {
            server: self,
            challenge,
            code,
            device_id: None,
            device_name: None,
            registration_id: None,
            replace_device_id: None,
            proof: None,
            recovery_key: None,
        }
    }

    /// Asks whose session a token is. Presents the token: if it was renewed, the old one ends.
    ///
    /// # Errors
    /// `unauthorized` if it is not valid, with the [reason](HttpError::invalid_token_reason).
    pub async fn check_session(&self, token: &str) -> Result<SessionReply, HttpError> {
        self.call(Method::GET, "/v1/auth/session", Some(token), Vec::new()).await?.success(StatusCode::OK)
    }

    /// Ends the session of a token. The device keeps its keys. A connected client uses
    /// [`Client::log_out`](crate::Client::log_out).
    ///
    /// # Errors
    /// `unauthorized` if the token is not valid, with the [reason](HttpError::invalid_token_reason).
    pub async fn log_out(&self, token: &str) -> Result<(), HttpError> {
        let reply = self.call(Method::DELETE, "/v1/auth/session", Some(token), Vec::new()).await?;
        if reply.status == StatusCode::NO_CONTENT { Ok(()) } else { Err(reply.into_error()) }
    }

    /// Opens the socket of a session.
    pub(crate) async fn upgrade(&self, token: &str, codec: Codec, nonce: [u8; 16]) -> Result<Socket, HttpError> {
        self.endpoint.upgrade(token, codec, nonce, self.timeout).await
    }

    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        token: Option<&str>,
        body: Vec<u8>,
    ) -> Result<Reply, HttpError> {
        self.endpoint.call(method, path, token, body, self.timeout).await
    }

    /// Posts a request; again with a proof of work if the server offers that.
    async fn post_with_proof<T: PaidByProof>(&self, path: &str, mut request: T) -> Result<Reply, HttpError> {
        let mut tries = 0;
        loop {
            let body = serde_json::to_vec(&request).map_err(|error| HttpError::Transport(error.into()))?;
            let reply = self.call(Method::POST, path, None, body).await?;
            let offer = Offer::in_body(&reply.body).filter(|_| !reply.status.is_success() && tries < MAX_PROOFS);
            let Some(offer) = offer else { return Ok(reply) };
            *request.proof() = Some(Lenient(Some(offer.solve().await?)));
            tries += 1;
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// A code that was requested. It can be stored until the person has typed the code.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// Identifies the challenge, here and in the ops that need a code.
    pub id: ChallengeId,
    /// The address that the code was mailed to.
    pub email: String,
    /// How long the code is valid.
    pub expires_in: Duration,
    /// When to offer another code.
    pub resend_in: Duration,
}

impl Challenge {
    /// What a device signs with its identity key, in its suite, to sign in again with this challenge or to be replaced.
    #[must_use]
    pub fn proof_message(&self, device: DeviceId) -> [u8; 56] {
        device_proof_message(self.id, device)
    }
}

/// A sign-in that is made when it is awaited: on a new device, unless [`as_device`](Self::as_device) names another.
#[must_use = "a request is made when it is awaited"]
#[derive(Clone, Copy)]
pub struct SignInRequest<'a> {
    server: &'a Server,
    challenge: &'a Challenge,
    code: &'a str,
    device_id: Option<DeviceId>,
    device_name: Option<&'a str>,
    registration_id: Option<u32>,
    replace_device_id: Option<DeviceId>,
    proof: Option<&'a [u8]>,
    recovery_key: Option<&'a [u8; 32]>,
}

impl<'a> SignInRequest<'a> {
    /// The name of the new device, 1 to 64 characters.
    pub fn device_name(mut self, name: &'a str) -> Self {
        self.device_name = Some(name);
        self
    }

    /// The number of the new device in its library, 1 to 16380. The server draws one if it is not set.
    pub fn registration_id(mut self, id: u32) -> Self {
        self.registration_id = Some(id);
        self
    }

    /// Signs in again on a device of the user, which keeps its keys and its mailbox. If it has published keys, it needs a
    /// [`proof`](Self::proof).
    pub fn as_device(mut self, device: DeviceId) -> Self {
        self.device_id = Some(device);
        self
    }

    /// Revokes a device of the user in the same step, to make room below the limit: one of
    /// [`HttpError::replaceable_devices`], which the person has chosen. If it was connected within a week, it needs a
    /// [`proof`](Self::proof).
    pub fn replacing(mut self, device: DeviceId) -> Self {
        self.replace_device_id = Some(device);
        self
    }

    /// Shows that the app holds the identity key of the device that signs in again or is replaced: that key's signature,
    /// in the device's suite, over [`Challenge::proof_message`].
    pub fn proof(mut self, signature: &'a [u8]) -> Self {
        self.proof = Some(signature);
        self
    }

    /// Signs in to a locked account without an approval, with the key that the person has kept.
    pub fn recovery_key(mut self, key: &'a [u8; 32]) -> Self {
        self.recovery_key = Some(key);
        self
    }

    async fn send(self) -> Result<SignIn, HttpError> {
        let request = VerifyRequest {
            challenge_id: self.challenge.id,
            email: text(&self.challenge.email, "the address")?,
            code: text(self.code, "the code")?,
            device: Some(Object(DeviceDescription {
                id: self.device_id,
                name: self.device_name.map(|name| text(name, "the device's name")).transpose()?,
                registration_id: self.registration_id,
                proof: self.proof.map(Text::base64),
            })),
            replace_device_id: self.replace_device_id,
            recovery_key: self.recovery_key.map(|key| Text::base64(key)),
            proof: None,
        };
        let reply = self.server.post_with_proof("/v1/auth/verify", request).await?;
        if reply.status == StatusCode::ACCEPTED {
            Approval::from_reply(reply).map(SignIn::Approval)
        } else {
            session(reply).map(SignIn::Session)
        }
    }
}

impl<'a> IntoFuture for SignInRequest<'a> {
    type Output = Result<SignIn, HttpError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send + 'a>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl fmt::Debug for SignInRequest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignInRequest").field("challenge", &self.challenge.id).finish_non_exhaustive()
    }
}

/// The session in a response with status 201.
pub(crate) fn session(reply: Reply) -> Result<Session, HttpError> {
    let status = reply.status.as_u16();
    let reply: SessionReply = reply.success(StatusCode::CREATED)?;
    Session::from_reply(reply).ok_or(HttpError::Unexpected { status, retry_after: None })
}

fn text(text: &str, what: &'static str) -> Result<Text, HttpError> {
    Text::parse(text).ok_or(HttpError::InvalidText(what))
}
