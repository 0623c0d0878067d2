//! Sign-in: a code by mail, then a session.

use std::future::Future;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::{Data, Payload},
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use tracing::Instrument;

use super::{BODY_TIME, Http, MAX_BODY_BYTES};
use crate::{
    domain::{ChallengeId, ClientNetwork, DeviceId, Refusal, Session, SessionId, Timestamp, UserId, otp},
    metrics::{Outcome, Route},
    protocol::{
        Codec, Problem,
        client::client_address,
        http::bearer,
        params::accounts::{OtpBody, VerifyBody},
        value::Object,
    },
    service::{SignInRequest, Told},
};

#[derive(Serialize)]
struct OtpAnswer {
    challenge_id: ChallengeId,
    expires_in_s: u64,
    resend_in_s: u64,
}

#[derive(Serialize)]
struct SessionAnswer {
    user_id: UserId,
    device_id: DeviceId,
    session_id: SessionId,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    expires_at: Timestamp,
}

impl SessionAnswer {
    fn new(session: Session, token: Option<String>) -> Self {
        let Session { caller, expires_at } = session;
        Self { user_id: caller.user, device_id: caller.device, session_id: caller.session, token, expires_at }
    }
}

/// `POST /v1/auth/otp`
pub async fn otp(http: Data<Http>, request: HttpRequest, body: Payload) -> HttpResponse {
    respond(&http, Route::Otp, StatusCode::ACCEPTED, async {
        let body: OtpBody = read(body).await?;
        let email = body.email()?;
        let network = network(&http, &request);
        let service = http.service.clone();
        let work = async move { Ok((service.request_code(email, network).await?, Told::default())) };
        let challenge = on_runtime(&http, work).await?;
        Ok(Some(OtpAnswer {
            challenge_id: challenge.id,
            expires_in_s: otp::LIFETIME.as_secs(),
            resend_in_s: otp::RESEND_AFTER.as_secs(),
        }))
    })
    .await
}

/// `POST /v1/auth/verify`
pub async fn verify(http: Data<Http>, request: HttpRequest, body: Payload) -> HttpResponse {
    respond(&http, Route::Verify, StatusCode::CREATED, async {
        let mut body: VerifyBody = read(body).await?;
        let device = body.device()?;
        let sign_in = SignInRequest {
            challenge: body.challenge_id,
            email: body.email()?,
            code: body.code()?,
            existing_device: device.id,
            device_name: device.name.map(|name| name.as_str().to_owned()),
            registration_id: device.registration_id,
            replace: body.replace_device_id,
        };
        let network = network(&http, &request);
        let service = http.service.clone();
        let work = async move {
            let (session, token, told) = service.sign_in(sign_in, network).await?;
            Ok(((session, token), told))
        };
        let (session, token) = on_runtime(&http, work).await?;
        Ok(Some(SessionAnswer::new(session, Some(token.reveal()))))
    })
    .await
}

/// `GET /v1/auth/session`
pub async fn session(http: Data<Http>, request: HttpRequest) -> HttpResponse {
    let work = async { Ok(Some(SessionAnswer::new(present(&http, &request).await?, None))) };
    respond(&http, Route::Session, StatusCode::OK, work).await
}

/// `DELETE /v1/auth/session`
pub async fn logout(http: Data<Http>, request: HttpRequest) -> HttpResponse {
    respond(&http, Route::Logout, StatusCode::NO_CONTENT, async {
        let caller = present(&http, &request).await?.caller;
        let service = http.service.clone();
        let work = async move { Ok(((), service.logout(&caller).await?)) };
        on_runtime(&http, work).await.map_err(|refusal| {
            // Ended by somebody else in this moment: on HTTP every bad token is the same.
            if refusal == Refusal::SessionRevoked { Refusal::Unauthorized } else { refusal }
        })?;
        Ok(None::<SessionAnswer>)
    })
    .await
}

/// Finds the session of the request's bearer token.
async fn present(http: &Http, request: &HttpRequest) -> Result<Session, Refusal> {
    let token = bearer(request.headers()).flatten().ok_or(Refusal::Unauthorized)?;
    let service = http.service.clone();
    on_runtime(http, async move { service.present(&token).await }).await
}

fn network(http: &Http, request: &HttpRequest) -> ClientNetwork {
    client_address(request.peer_addr(), request.headers(), &http.trusted_proxies).into()
}

/// Runs a use case on the runtime of store and bus, to its end even if the client goes away, and tells others what it
/// owes to them.
async fn on_runtime<T: Send + 'static>(
    http: &Http,
    work: impl Future<Output = Result<(T, Told), Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let service = http.service.clone();
    let told = async move {
        let (answer, told) = work.await?;
        service.tell(told);
        Ok(answer)
    };
    http.runtime.spawn(told.in_current_span()).await.map_err(|_| Refusal::Internal)?
}

/// Reads a JSON body, whatever its Content-Type.
async fn read<T: DeserializeOwned>(body: Payload) -> Result<T, Refusal> {
    let bytes = timeout(BODY_TIME, body.to_bytes_limited(MAX_BODY_BYTES))
        .await
        .map_err(|_| Refusal::TooSlow)?
        .map_err(|_| Refusal::PayloadTooLarge)?
        .map_err(|_| Refusal::BadRequest("the body was cut off".into()))?;
    let Object(body) = Codec::Json.decode(&bytes).map_err(|error| Refusal::BadRequest(error.to_string().into()))?;
    Ok(body)
}

async fn respond<T: Serialize>(
    http: &Http,
    route: Route,
    success: StatusCode,
    work: impl Future<Output = Result<Option<T>, Refusal>>,
) -> HttpResponse {
    match work.await {
        Ok(answer) => {
            http.metrics.http_requests.inc((route, Outcome::Done));
            let mut response = HttpResponse::build(success);
            response.insert_header((header::CACHE_CONTROL, "no-store"));
            match answer {
                Some(answer) => response.json(answer),
                None => response.finish(),
            }
        }
        Err(refusal) => {
            let problem = Problem::from(refusal);
            http.metrics.http_requests.inc((route, Outcome::Refused(problem.code())));
            problem.response()
        }
    }
}
