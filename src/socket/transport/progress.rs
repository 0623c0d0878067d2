//! What becomes of a connection's requests once their heads have come in, told by the application to the stream below it.

use std::{cell::Cell, rc::Rc};

use actix_http::{ConnectionType, Request};
use actix_service::{Service, ServiceFactory, apply_fn_factory};
use actix_web::{Error, body::MessageBody, dev::ServiceResponse};

/// Shared by a connection's stream and the application that answers what came over it.
#[derive(Debug, Default)]
pub(super) struct Progress {
    begun: Cell<u64>,
    under_way: Cell<usize>,
    is_over: Cell<bool>,
}

impl Progress {
    /// How many heads have come in whole.
    pub(super) fn begun(&self) -> u64 {
        self.begun.get()
    }

    /// Whether an answer is being made, so that what comes in is no head.
    pub(super) fn is_under_way(&self) -> bool {
        self.under_way.get() > 0
    }

    /// Whether the connection ends with the answer that was given.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.get()
    }

    /// Says that the connection has its last answer.
    pub(super) fn end(&self) {
        self.is_over.set(true);
    }
}

/// A request that is being answered, until this is dropped.
struct UnderWay(Rc<Progress>);

impl UnderWay {
    fn begin(progress: &Rc<Progress>) -> Self {
        progress.begun.set(progress.begun.get() + 1);
        progress.under_way.set(progress.under_way.get() + 1);
        Self(progress.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.set(self.0.under_way.get() - 1);
    }
}

/// An application whose connections see how it gets on.
pub(super) fn followed<S, B>(
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
        let under_way = request.conn_data::<Rc<Progress>>().map(UnderWay::begin);
        let answer = app.call(request);
        async move {
            let answer = answer.await;
            if let (Some(UnderWay(progress)), Ok(answer)) = (&under_way, &answer)
                && answer.response().head().connection_type() == ConnectionType::Close
            {
                progress.end();
            }
            answer
        }
    })
}
