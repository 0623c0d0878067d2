//! Holds more sockets than k6 can, measures what they cost the server, and compares sealwire with bare actix-ws echo
//! servers. See `loadtest/README.md`.

mod claims;
mod client;
mod compare;
mod devices;
mod dice;
mod echo;
mod hold;
mod messages;
mod part;
mod process;
mod seeded;
mod tally;
mod times;

use clap::{Parser, Subcommand};

/// Errors end the program with a message; nobody tells them apart.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The servers allocate with what sealwire allocates with, or the comparison would be of allocators.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Many WebSockets, and what they cost the server")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a bare actix-ws echo, one actor a socket, on either transport; prints its address and pid
    Echo(echo::Options),
    /// Hold sockets to a running server and measure; prints JSON
    Hold(hold::Options),
    /// Measure sealwire and both echo servers side by side; prints a table
    Compare(compare::Options),
    /// Claim keys over many sockets at once; prints JSON
    Claims(claims::Options),
    /// Write messages between many sockets; prints JSON
    Messages(messages::Options),
    /// One process of a swarm, told what to do on standard input
    #[command(hide = true)]
    Part(part::Options),
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Echo(options) => echo::run(&options),
        Command::Hold(options) => process::block_on(hold::run(options)),
        Command::Compare(options) => process::block_on(compare::run(options)),
        Command::Claims(options) => process::block_on(claims::run(options)),
        Command::Messages(options) => process::block_on(messages::run(options)),
        Command::Part(options) => process::block_on(part::run(options)),
    }
}
