//! An echo server, to measure the cost of a transport alone: one actor per socket sends back what it receives, over
//! actix-web's stock transport or sealwire's.

use std::{
    net::{SocketAddr, TcpListener},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, StreamHandler, System, fut::WrapFuture};
use actix_web::{App, HttpMessage, HttpRequest, HttpResponse, HttpServer, web};
use actix_ws::{Message, ProtocolError, Session};
use sealwire::socket::transport::{self, ConnectionLimiter, Holder, Seats, SharedBudget, Tuning, Wire};
use sealwire_protocol::limits::MAX_FRAME_BYTES;
use serde_json::json;

use crate::Result;

/// Options of `swarm echo`.
#[derive(clap::Args)]
pub struct Options {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:0")]
    bind: SocketAddr,
    /// Worker threads
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Transport of the frames
    #[arg(long, value_enum, default_value_t = Transport::Stock)]
    transport: Transport,
}

/// The transport of an echo server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// actix-web's `HttpServer`, unmodified.
    Stock,
    /// Sealwire's own transport.
    Lean,
}

struct Echo {
    session: Session,
}

impl Actor for Echo {
    type Context = Context<Self>;
}

impl StreamHandler<std::result::Result<Message, ProtocolError>> for Echo {
    fn handle(&mut self, message: std::result::Result<Message, ProtocolError>, ctx: &mut Self::Context) {
        let mut session = self.session.clone();
        // `wait` keeps the order: the next message is handled after this one was passed to the session.
        let sending = async move {
            match message {
                Ok(Message::Text(text)) => session.text(text).await.is_ok(),
                Ok(Message::Binary(data)) => session.binary(data).await.is_ok(),
                Ok(Message::Ping(data)) => session.pong(&data).await.is_ok(),
                Ok(Message::Pong(_) | Message::Continuation(_) | Message::Nop) => true,
                Ok(Message::Close(reason)) => {
                    // Fails if the peer has gone.
                    let _ = session.close(reason).await;
                    false
                }
                Err(_) => false,
            }
        };
        ctx.wait(sending.into_actor(self).map(|goes_on, _, ctx| {
            if !goes_on {
                ctx.stop();
            }
        }));
    }
}

async fn socket(request: HttpRequest, body: web::Payload) -> actix_web::Result<HttpResponse> {
    // Only sealwire's transport has places.
    if let Some(wire) = request.extensions().get::<Rc<Wire>>() {
        wire.take_seat(Holder::NOBODY).map_err(|_| actix_web::error::ErrorServiceUnavailable("full"))?;
    }
    let (response, session, messages) = actix_ws::handle_with_protocols(&request, body, &["sealwire.v1.json"])?;
    Echo::create(|ctx| {
        ctx.add_stream(messages);
        Echo { session }
    });
    Ok(response)
}

/// Runs the command: serves until it is stopped.
pub fn run(options: &Options) -> Result<()> {
    System::new().block_on(async {
        let app = || App::new().default_service(web::get().to(socket));
        let listener = match options.transport {
            Transport::Stock => TcpListener::bind(options.bind)?,
            Transport::Lean => transport::bind(options.bind)?,
        };
        println!("{}", json!({ "address": listener.local_addr()?, "pid": std::process::id() }));
        match options.transport {
            Transport::Stock => {
                HttpServer::new(app).workers(options.workers).tcp_nodelay(true).listen(listener)?.run().await?;
            }
            Transport::Lean => {
                let server = actix_server::Server::build().workers(options.workers);
                transport::listen(server, listener, app, tuning())?.run().await?;
            }
        }
        Ok(())
    })
}

/// Limits like those of a sealwire server.
fn tuning() -> Tuning {
    Tuning {
        max_message: MAX_FRAME_BYTES as u64,
        inbound: SharedBudget::new(256 << 20, MAX_FRAME_BYTES),
        limiter: ConnectionLimiter::unlimited(),
        connections: Seats::new(1 << 20, 1 << 20, Arc::default()),
        stall: Duration::from_secs(35),
    }
}
