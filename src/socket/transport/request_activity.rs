//! Lets the stream of a connection see which of its requests the application is working on.

use std::{cell::Cell, rc::Rc};

use actix_http::{ConnectionType, Request};
use actix_service::{Service, ServiceFactory, apply_fn_factory};
use actix_web::{Error, body::MessageBody, dev::ServiceResponse};

/// Shared by a connection's stream and the application that answers what came over it.
#[derive(Debug, Default)]
pub(super) struct RequestActivity {
    begun: Cell<u64>,
    under_way: Cell<usize>,
    is_over: Cell<bool>,
}

impl RequestActivity {
    /// The number of requests whose heads have come in whole.
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Whether a request is being answered, so that what comes in is not a head.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.get() > 0
    }

    /// Whether the connection ends with the answer that was given.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// Notes that the connection has its last answer.
    pub(super) fn end(&self) {
        self.is_over.set(true);
    }
}

/// A request that is being answered, until this is dropped.
struct ActiveRequest(Rc<RequestActivity>);

impl ActiveRequest {
    fn begin(activity: &Rc<RequestActivity>) -> Self {
        activity.begun.set(activity.begun.get() + 1);
        activity.under_way.set(activity.under_way.get() + 1);
        Self(activity.clone())
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}

/// Wraps an application so that its connections see the activity of their requests.
pub(super) fn tracked<S, B>(
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
        let answer = app.call(request);
        async move {
            let answer = answer.await;
            if let (Some(ActiveRequest(activity)), Ok(answer)) = (&active, &answer)
                && answer.response().head().connection_type() == ConnectionType::Close
            {
                activity.end();
            }
            answer
        }
    })
}
