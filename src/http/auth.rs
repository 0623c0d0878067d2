//! The routes for sign-in and sessions.

use std::future::Future;

use actix_web::{
    HttpRequest, HttpResponse,
    http::{StatusCode, header},
    web::{Data, Payload},
};
use sealwire_protocol::{
    Codec,
    approvals::PollApprovalRequest,
    auth::{OtpRequest, SessionReply, VerifyRequest},
    limits::MAX_BODY_BYTES,
    value::Object,
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::timeout;
use tracing::Instrument;

use super::{BODY_TIMEOUT, Http};
use crate::{
    domain::{ClientNetwork, Refusal, Session, refusal::InvalidTokenReason},
    edge::{EdgeError, Problem, accounts, bearer_token, client_address},
    metrics::{ResponseCode, Route},
    service::{Notifications, PolledApproval, SignInAnswer},
};

/// `POST /v1/auth/otp`
pub async fn otp(http: Data<Http>, request: HttpRequest, body: Payload) -> HttpResponse {
    respond(&http, Route::Otp, async {
        let body: OtpRequest = read(body).await?;
        let requested = accounts::requested_code(body, bearer_token(request.headers()).flatten())?;
        let network = network(&http, &request);
        let service = http.service.clone();
        let work = async move { Ok((service.request_code(requested, network).await?, Notifications::default())) };
        let challenge = on_runtime(&http, work).await?;
        Ok((StatusCode::ACCEPTED, Some(accounts::otp_reply(&challenge))))
    })
    .await
}

/// `POST /v1/auth/verify`
pub async fn verify(http: Data<Http>, request: HttpRequest, body: Payload) -> HttpResponse {
    respond(&http, Route::Verify, async {
        let body: VerifyRequest = read(body).await?;
        let sign_in = accounts::sign_in(body)?;
        let network = network(&http, &request);
        let service = http.service.clone();
        let answer = on_runtime(&http, async move { service.sign_in(sign_in, network).await }).await?;
        let status = match answer {
            SignInAnswer::SignedIn(..) => StatusCode::CREATED,
            SignInAnswer::Waiting(_) => StatusCode::ACCEPTED,
        };
        Ok((status, Some(accounts::verify_reply(answer))))
    })
    .await
}

/// `POST /v1/auth/approval`
pub async fn approval(http: Data<Http>, request: HttpRequest, body: Payload) -> HttpResponse {
    respond(&http, Route::Approval, async {
        let PollApprovalRequest { request_id, poll_token } = read(body).await?;
        let network = network(&http, &request);
        let service = http.service.clone();
        let work = async move { service.poll_approval(request_id, poll_token.as_str(), network).await };
        let answer = on_runtime(&http, work).await?;
        let status = match answer {
            PolledApproval::Approved(..) => StatusCode::CREATED,
            PolledApproval::Pending { .. } => StatusCode::ACCEPTED,
        };
        Ok((status, Some(accounts::poll_reply(answer))))
    })
    .await
}

/// `GET /v1/auth/session`
pub async fn session(http: Data<Http>, request: HttpRequest) -> HttpResponse {
    respond(&http, Route::Session, async {
        let session = authenticate(&http, &request).await?;
        Ok((StatusCode::OK, Some(accounts::session_reply(session, None))))
    })
    .await
}

/// `DELETE /v1/auth/session`
pub async fn logout(http: Data<Http>, request: HttpRequest) -> HttpResponse {
    respond(&http, Route::Logout, async {
        let caller = authenticate(&http, &request).await?.caller;
        let service = http.service.clone();
        let work = async move {
            let _place = service.enter(caller.user).await?;
            Ok(((), service.logout(&caller).await?))
        };
        match on_runtime(&http, work).await {
            // The session ended since it was authenticated. Authenticating again finds out why.
            Err(Refusal::SessionRevoked) => authenticate(&http, &request).await.map(drop)?,
            answer => answer?,
        }
        Ok((StatusCode::NO_CONTENT, None::<SessionReply>))
    })
    .await
}

/// Returns the session of the request's bearer token.
async fn authenticate(http: &Http, request: &HttpRequest) -> Result<Session, EdgeError> {
    let token = bearer_token(request.headers()).flatten().ok_or(Refusal::Unauthorized(InvalidTokenReason::Unknown))?;
    let (service, network) = (http.service.clone(), network(http, request));
    Ok(on_runtime(http, async move { service.authenticate(&token, network).await }).await?)
}

fn network(http: &Http, request: &HttpRequest) -> ClientNetwork {
    client_address(request.peer_addr(), request.headers(), &http.trusted_proxies).into()
}

/// Runs a use case on the runtime of store and bus, and sends its notifications. It runs to completion even if the
/// client disconnects.
async fn on_runtime<T: Send + 'static>(
    http: &Http,
    work: impl Future<Output = Result<(T, Notifications), Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let service = http.service.clone();
    let notified = async move {
        let (answer, notifications) = work.await?;
        service.notify(notifications);
        Ok(answer)
    };
    http.runtime.spawn(notified.in_current_span()).await.map_err(|_| Refusal::Internal)?
}

/// Reads a JSON body. The `Content-Type` is ignored.
pub(super) async fn read<T: DeserializeOwned>(body: Payload) -> Result<T, EdgeError> {
    let bytes = timeout(BODY_TIMEOUT, body.to_bytes_limited(MAX_BODY_BYTES))
        .await
        .map_err(|_| EdgeError::TooSlow)?
        .map_err(|_| EdgeError::PayloadTooLarge)?
        .map_err(|_| EdgeError::Malformed("the body was cut off".into()))?;
    let Object(body) = Codec::Json.decode(&bytes)?;
    Ok(body)
}

/// Runs a handler, counts its outcome and builds the response. `None` makes a response without a body.
async fn respond<T: Serialize>(
    http: &Http,
    route: Route,
    work: impl Future<Output = Result<(StatusCode, Option<T>), EdgeError>>,
) -> HttpResponse {
    match work.await {
        Ok((status, answer)) => {
            http.metrics.http_requests.inc((route, ResponseCode::Success));
            let mut response = HttpResponse::build(status);
            response.insert_header((header::CACHE_CONTROL, "no-store"));
            match answer {
                Some(answer) => response.json(answer),
                None => response.finish(),
            }
        }
        Err(error) => {
            let problem = Problem::from(error);
            http.metrics.http_requests.inc((route, ResponseCode::Error(problem.code())));
            problem.response()
        }
    }
}
