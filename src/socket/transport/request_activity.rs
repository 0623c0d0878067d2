//! Tracks the requests of a connection that has not upgraded, so that its stream knows which deadline applies.

use std::{cell::Cell, rc::Rc};

use actix_http::{ConnectionType, Request};
use actix_service::{Service, ServiceFactory, apply_fn_factory};
use actix_web::{Error, body::MessageBody, dev::ServiceResponse};

/// The requests of one connection. Its stream reads this; the application wrapped by [`track_requests`] updates it.
#[derive(Debug, Default)]
pub(super) struct RequestActivity {
    begun: Cell<u64>,
    in_progress: Cell<usize>,
    is_closing: Cell<bool>,
}

impl RequestActivity {
    /// The number of requests of this connection whose heads have been received.
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Whether the application is handling a request. Bytes received meanwhile do not begin a new head.
    pub(super) fn is_in_progress(&self) -> bool {
        self.in_progress.get() > 0
    }

    /// Whether the connection closes after the current response.
    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.get()
    }

    /// Records that the connection closes after the current response.
    pub(super) fn set_closing(&self) {
        self.is_closing.set(true);
    }
}

/// Counts a request as in progress until this is dropped.
struct ActiveRequest(Rc<RequestActivity>);

impl ActiveRequest {
    fn begin(activity: &Rc<RequestActivity>) -> Self {
        activity.begun.set(activity.begun.get() + 1);
        activity.in_progress.set(activity.in_progress.get() + 1);
        Self(activity.clone())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.in_progress.set(self.0.in_progress.get() - 1);
    }
}

/// Wraps an application so that it updates the [`RequestActivity`] of its connections.
pub(super) fn track_requests<S, B>(
    app: S,
) -> impl ServiceFactory<
    Request,
    Config = (),
    Response = ServiceResponse<B>,
    Error = Error,
    InitError = (),
    Service = impl Service<Request, Response = ServiceResponse<B>, Error = Error, Future: 'static> + 'static,
>
where
    S: ServiceFactory<Request, Config = (), Response = ServiceResponse<B>, Error = Error, InitError = ()> + 'static,
    <S::Service as Service<Request>>::Future: 'static,
    S::Service: 'static,
    B: MessageBody + 'static,
{
    apply_fn_factory(app, |request: Request, app: &S::Service| {
        let active = request.conn_data::<Rc<RequestActivity>>().map(ActiveRequest::begin);
        let response = app.call(request);
        async move {
            let response = response.await;
            if let (Some(ActiveRequest(activity)), Ok(response)) = (&active, &response)
                && response.response().head().connection_type() == ConnectionType::Close
            {
                activity.set_closing();
            }
            response
        }
    })
}
