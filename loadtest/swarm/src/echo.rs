//! What a transport costs by itself: one actor a socket that sends back what it gets, on actix-web's stock path or on
//! sealwire's lean one.

use std::{
    net::{SocketAddr, TcpListener},
    time::Duration,
};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, StreamHandler, System, fut::WrapFuture};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use actix_ws::{Message, ProtocolError, Session};
use sealwire::socket::transport::{self, Budget, ConnectionLimiter, Tuning};
use sealwire_protocol::limits::MAX_FRAME_BYTES;
use serde_json::json;

use crate::Result;

/// How to serve the echo.
#[derive(clap::Args)]
pub struct Options {
    /// Address to listen on
    #[arg(long, default_value = "127.0.0.1:0")]
    bind: SocketAddr,
    /// Worker threads
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// What carries the frames
    #[arg(long, value_enum, default_value_t = Transport::Stock)]
    transport: Transport,
}

/// What carries the frames of an echo server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Transport {
    /// `HttpServer`, as it comes.
    Stock,
    /// The transport that sealwire serves its sockets with.
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
        // `wait` keeps the order: the next message is handled when this one is with the session.
        let sending = async move {
            match message {
                Ok(Message::Text(text)) => session.text(text).await.is_ok(),
                Ok(Message::Binary(data)) => session.binary(data).await.is_ok(),
                Ok(Message::Ping(data)) => session.pong(&data).await.is_ok(),
                Ok(Message::Pong(_) | Message::Continuation(_) | Message::Nop) => true,
                Ok(Message::Close(reason)) => {
                    // A peer that is gone already needs no answer.
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
    let (response, session, messages) = actix_ws::handle_with_protocols(&request, body, &["sealwire.v1.json"])?;
    Echo::create(|ctx| {
        ctx.add_stream(messages);
        Echo { session }
    });
    Ok(response)
}

/// Serves until it is stopped.
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

/// The bounds of a sealwire server, as far as the transport sees to them.
fn tuning() -> Tuning {
    Tuning {
        max_message: MAX_FRAME_BYTES as u64,
        inbound: Budget::new(256 << 20),
        limiter: ConnectionLimiter::unlimited(),
        connections: Budget::new(1 << 20),
        stall: Duration::from_secs(35),
    }
}
