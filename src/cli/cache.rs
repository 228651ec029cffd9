//! `onrush cache`: a hand on a running server's cache, which lives in its memory.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{Common, EXIT_BROKEN, EXIT_UNAVAILABLE, EXIT_USAGE, Failed, Outcome, print};
use crate::http::client::Connection;

#[derive(Subcommand)]
pub(super) enum CacheCommand {
    /// Load keys ahead of those who will ask for them
    Warm(WarmArgs),
}

#[derive(Args)]
pub(super) struct WarmArgs {
    /// Keys, such as product:7 or flash_sale:3 [default: the hot ones]
    keys: Vec<String>,
    /// File with an admin's API key that has the scope `cache`
    #[arg(long, value_name = "FILE")]
    api_key_file: PathBuf,
    /// Where the server listens, without TLS [default: from the settings]
    #[arg(long)]
    address: Option<SocketAddr>,
}

pub(super) fn cache(common: &Common, command: &CacheCommand) -> Outcome {
    match command {
        CacheCommand::Warm(args) => warm(common, args),
    }
}

fn warm(common: &Common, args: &WarmArgs) -> Outcome {
    let settings = common.load(Vec::new())?.settings;
    let address = args
        .address
        .unwrap_or_else(|| SocketAddr::new(settings.server.host, settings.server.port));
    let key = std::fs::read_to_string(&args.api_key_file).map_err(|error| {
        let file = args.api_key_file.display();
        Failed::new(
            EXIT_USAGE,
            format!("{file}: {error}; `onrush api-key create` makes a key"),
        )
    })?;
    let body = serde_json::json!({"keys": args.keys}).to_string();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let asked = runtime.block_on(async {
        let mut server = Connection::open(address).await?;
        server
            .post("/api/v1/cache/warm", key.trim(), None, &body)
            .await
    });
    let answer = asked.map_err(|error| {
        Failed::new(
            EXIT_UNAVAILABLE,
            format!("nothing answers at {address}: {error}; is `onrush serve` running?"),
        )
    })?;
    let told: serde_json::Value = serde_json::from_str(&answer.body).unwrap_or_default();
    if answer.status != 200 {
        let why = told["detail"].as_str().unwrap_or("it gave no reason");
        return Err(Failed::new(
            EXIT_BROKEN,
            format!("the server answered {}: {why}", answer.status),
        ));
    }
    print(&if common.json {
        told.to_string()
    } else {
        format!(
            "{} loaded, {} not found or failed, {} of no known kind",
            told["warmed"], told["failed"], told["unknown"]
        )
    });
    Ok(())
}
