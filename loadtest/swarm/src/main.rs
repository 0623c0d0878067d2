//! A load test client that holds more sockets than k6 can, measures their cost to the server, and compares sealwire with
//! bare actix-ws echo servers. See `loadtest/README.md`.

mod claims;
mod client;
mod compare;
mod connects;
mod devices;
mod dice;
mod echo;
mod hold;
mod messages;
mod part;
mod process;
mod push;
mod push_service;
mod seeded;
mod tally;
mod times;

use clap::{Parser, Subcommand};

/// Errors end the program with a message, so they need no types.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The allocator of sealwire, so that the comparison with the echo servers is not one of allocators.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
// The last of repeated options counts, so that scripts can override what they set before.
#[command(about = "Opens many WebSockets and measures their cost to the server", args_override_self = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a bare actix-ws echo, with one actor per socket, on either transport; prints its address and pid
    Echo(echo::Options),
    /// Hold sockets to a running server and measure it; prints JSON
    Hold(hold::Options),
    /// Measure sealwire and both echo servers side by side; prints a table
    Compare(compare::Options),
    /// Open and close sockets to a running server, in rounds; prints JSON
    Connects(connects::Options),
    /// Claim keys over many sockets; prints JSON
    Claims(claims::Options),
    /// Send messages between many sockets; prints JSON
    Messages(messages::Options),
    /// Wake devices by push services of its own; prints their ports, waits for a line on standard input, then prints JSON
    Push(push::Options),
    /// Run one process of a swarm, with orders on standard input
    #[command(hide = true)]
    Part(part::Options),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Echo(options) => echo::run(&options),
        Command::Hold(options) => process::block_on(hold::run(options)),
        Command::Compare(options) => process::block_on(compare::run(options)),
        Command::Connects(options) => process::block_on(connects::run(options)),
        Command::Claims(options) => process::block_on(claims::run(options)),
        Command::Messages(options) => process::block_on(messages::run(options)),
        Command::Push(options) => process::block_on(push::run(options)),
        Command::Part(options) => process::block_on(part::run(options)),
    }
}
