//! The command line (semantics 10).
//!
//! Owns arguments, exit codes, where logs go and what is printed: results on
//! standard output, through [`emit`] alone, everything else on standard error.
//! Exit codes: 0 done, 2 usage or configuration, 1 anything else. What a
//! process does once its configuration is good belongs to `hub`, `agent` and
//! `demo`.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, CommandFactory as _, Parser, Subcommand, ValueEnum};
use nowconnect_core::id::{AgentId, Name};

use crate::answers::{self, Answer};
use crate::cert::{self, Signer, Subject, TokenRequest};
use crate::config::{self, AgentSetup, Finding, HubSetup, Kind, ParseOptions};
use crate::demo::DemoOptions;
use crate::{ask, drain, files, secret};

/// Why a command ended without success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// Usage or configuration: exit code 2.
    #[error("{0}")]
    Config(String),
    /// Anything else: exit code 1.
    #[error("{0}")]
    Failed(String),
}

impl RunError {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Failed(_) => 1,
        }
    }
}

/// High-availability reverse tunnel: agents dial out to hubs, hubs carry
/// clients to agents, hubs form a mesh.
#[derive(Debug, Parser)]
#[command(name = "nowconnect", version, max_term_width = 100)]
struct Cli {
    /// How log lines are written to standard error.
    #[arg(long, value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
    /// What is logged: a level, or directives as in `info,stream=debug`
    /// [default: info; demo: warn].
    #[arg(long, env = "RUST_LOG", global = true, value_name = "FILTER")]
    log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum KindArg {
    Hub,
    Agent,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Hub => Self::Hub,
            KindArg::Agent => Self::Agent,
        }
    }
}

#[derive(Clone, Debug, Args)]
struct FileArgs {
    /// The configuration file.
    #[arg(long, short, env = "NC_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Warn about unknown keys instead of refusing them.
    #[arg(long)]
    allow_unknown_keys: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a hub.
    Hub(FileArgs),
    /// Run an agent.
    Agent(FileArgs),
    /// Run two hubs, their link and an agent in one process on loopback.
    Demo {
        /// A server of your own; an embedded one is used when absent.
        #[arg(long, value_name = "HOST:PORT")]
        target: Option<String>,
        /// First of the loopback ports to use; free ones are chosen when absent.
        #[arg(long, value_name = "PORT")]
        port_base: Option<u16>,
    },
    /// Check a configuration file and say everything that is wrong with it.
    CheckConfig {
        /// The configuration file.
        #[arg(env = "NC_CONFIG", value_name = "FILE")]
        config: PathBuf,
        /// Whose file it is; told from its keys when absent.
        #[arg(long, value_enum)]
        kind: Option<KindArg>,
        /// Warn about unknown keys instead of refusing them.
        #[arg(long)]
        allow_unknown_keys: bool,
    },
    /// About configuration files.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Ask a running process whether it is ready; 0 when it is.
    Healthcheck {
        /// Where to ask.
        #[arg(long, default_value = "http://127.0.0.1:8765/readyz")]
        url: String,
        /// Its admin.socket, instead: the way to ask an agent.
        #[arg(long, conflicts_with = "url", value_name = "PATH")]
        socket: Option<PathBuf>,
        /// How long to wait for the answer, such as 3s.
        #[arg(long, default_value = "3s", value_parser = duration)]
        timeout: Duration,
    },
    /// Show what a running process does: its sessions, epochs, streams, memory.
    Status(StatusArgs),
    /// Make a running process read its configuration file again; 0 when it is in force.
    Reload(ReloadArgs),
    /// Make a running process leave as SIGTERM does, and wait until it is gone.
    Drain(drain::DrainArgs),
    /// Print shell completions.
    Completions {
        /// For which shell.
        shell: clap_complete::Shell,
    },
    /// Print a token, for trying things out.
    Token(TokenArgs),
    /// Write certificates as PEM files, for trying things out.
    Cert(CertArgs),
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print the JSON Schema of a configuration file.
    Schema {
        /// Whose file.
        #[arg(long, value_enum, default_value_t = KindArg::Hub)]
        kind: KindArg,
    },
}

/// Where a process is asked by its operator.
#[derive(Debug, Args)]
pub(crate) struct AdminArgs {
    /// Its admin.socket.
    #[arg(long, default_value = "/run/nowconnect/admin.sock", value_name = "PATH")]
    socket: PathBuf,
    /// Its admin.bind, instead: http://HOST:PORT.
    #[arg(long, conflicts_with = "socket")]
    url: Option<String>,
    /// File with the bearer token that admin.token_file asks for.
    #[arg(long, requires = "url", value_name = "FILE")]
    token_file: Option<PathBuf>,
}

impl AdminArgs {
    /// Asks there.
    pub(crate) fn ask<R>(&self, ask: impl FnOnce(ask::Place<'_>) -> Result<R, RunError>) -> Result<R, RunError> {
        let token = match &self.token_file {
            Some(path) => Some(secret::read("--token-file", path, 4096).map_err(RunError::Config)?),
            None => None,
        };
        ask(match &self.url {
            Some(url) => ask::Place::Url(url, token.as_deref()),
            None => ask::Place::Socket(&self.socket),
        })
    }
}

#[derive(Debug, Args)]
struct ReloadArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long to wait for the answer, such as 10s.
    #[arg(long, default_value = "10s", value_parser = duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
struct StatusArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// A table to read, or JSON as it came.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
    /// Ask nobody, and print the JSON Schema of an answer of the admin API.
    #[arg(
        long,
        value_enum,
        value_name = "ANSWER",
        num_args = 0..=1,
        default_missing_value = "status",
        conflicts_with_all = ["socket", "url", "token_file", "output", "timeout"],
    )]
    schema: Option<Answer>,
    /// How long to wait for the answer, such as 3s.
    #[arg(long, default_value = "3s", value_parser = duration)]
    timeout: Duration,
}

/// How an answer is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For a person.
    Text,
    /// For a program, as the process said it.
    Json,
}

#[derive(Debug, Args)]
struct TokenArgs {
    #[command(flatten)]
    signer: SignerArgs,
    /// The agent id (`sub`).
    #[arg(long, value_name = "ID")]
    agent_id: AgentId,
    /// A connector the agent may advertise; may be repeated.
    #[arg(long, num_args = 1.., value_name = "NAME")]
    connector: Vec<Name>,
    /// Who issues the token (`iss`), as in auth.jwt.issuer.
    #[arg(long)]
    issuer: String,
    /// Whom it is for (`aud`), as in auth.jwt.audience.
    #[arg(long, default_value = "nowconnect")]
    audience: String,
    /// How long it is valid, such as 1h.
    #[arg(long, default_value = "1h", value_parser = duration)]
    ttl: Duration,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SignerArgs {
    /// File with a shared secret of at least 32 bytes.
    #[arg(long, value_name = "FILE")]
    hmac_secret_file: Option<PathBuf>,
    /// PEM file with a private key (EC P-256, RSA or Ed25519).
    #[arg(long, value_name = "FILE")]
    private_key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct CertArgs {
    /// Directory for the files; it also holds the CA that signs.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    #[command(flatten)]
    subject: SubjectArgs,
    /// A further host name or IP address of the hub; may be repeated.
    #[arg(long, num_args = 1.., requires = "hub", value_name = "NAME")]
    san: Vec<String>,
    /// How long the certificate is valid.
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..))]
    days: u32,
    /// Replace files that exist.
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct SubjectArgs {
    /// Make a CA.
    #[arg(long)]
    ca: bool,
    /// Make a hub's certificate, for its replica id.
    #[arg(long, value_name = "NAME")]
    hub: Option<Name>,
    /// Make an agent's client certificate.
    #[arg(long, value_name = "NAME")]
    agent: Option<Name>,
}

pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    config::read_duration(text)
}

/// The whole program: arguments of the process in, exit code out.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => {
            // clap prints help and version to standard output, errors to standard error.
            let _ = e.print();
            return ExitCode::from(if e.use_stderr() { 2 } else { 0 });
        }
    };
    let by_command = if matches!(cli.command, Command::Demo { .. }) { "warn" } else { "info" };
    let outcome = init_logs(cli.log_format, cli.log_level.as_deref().unwrap_or(by_command)).and_then(|()| {
        // Only fails when somebody installed one before, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        run(cli.command)
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let mut stderr = std::io::stderr().lock();
            for line in e.to_string().lines() {
                let _ = writeln!(stderr, "error: {line}");
            }
            ExitCode::from(e.exit_code())
        }
    }
}

fn run(command: Command) -> Result<(), RunError> {
    match command {
        Command::Hub(args) => crate::hub::run(hub_setup(&args)?, Box::new(move || hub_setup(&args))),
        Command::Agent(args) => crate::agent::run(agent_setup(&args)?, Box::new(move || agent_setup(&args))),
        Command::Demo { target, port_base } => crate::demo::run(DemoOptions { target, port_base }),
        Command::CheckConfig { config, kind, allow_unknown_keys } => {
            check_config(&config, kind, ParseOptions { allow_unknown_keys })
        }
        Command::Config { command: ConfigCommand::Schema { kind } } => {
            let schema = config::schema(kind.into());
            emit(&format!("{schema:#}"))
        }
        Command::Healthcheck { url, socket, timeout } => {
            let place = match &socket {
                Some(socket) => ask::Place::Socket(socket),
                None => ask::Place::Url(&url, None),
            };
            emit(&ask::get(place, "/readyz", timeout)?)
        }
        Command::Status(args) => status(&args),
        Command::Reload(args) => reload(&args),
        Command::Drain(args) => drain::run(&args),
        Command::Completions { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "nowconnect", &mut text);
            emit(String::from_utf8_lossy(&text).trim_end())
        }
        Command::Token(args) => token(args),
        Command::Cert(args) => certificate(args),
    }
}

/// The only way to standard output. A reader that went away (`| head`) is no
/// failure.
///
/// # Errors
/// When standard output cannot be written to.
pub(crate) fn emit(text: &str) -> Result<(), RunError> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(RunError::Failed(format!("cannot write to standard output: {e}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn init_logs(format: LogFormat, filter: &str) -> Result<(), RunError> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|e| RunError::Config(format!("--log-level (or RUST_LOG): {e}")))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match format {
        LogFormat::Text => {
            let colour = std::io::IsTerminal::is_terminal(&std::io::stderr()) && std::env::var_os("NO_COLOR").is_none();
            builder.with_ansi(colour).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
    done.map_err(|e| RunError::Failed(format!("logging cannot be set up: {e}")))
}

/// Reads a file no larger than a configuration can be.
fn read_file(path: &Path) -> Result<String, RunError> {
    let problem = |e: &dyn std::fmt::Display| RunError::Config(format!("{}: {e}", path.display()));
    let file = std::fs::File::open(path).map_err(|e| problem(&e))?;
    let mut text = String::new();
    let limit = config::FILE_MAX_BYTES as u64 + 1;
    file.take(limit).read_to_string(&mut text).map_err(|e| problem(&e))?;
    if text.trim().is_empty() {
        // A mount that failed, most likely; as a configuration it says nothing.
        return Err(problem(&"the file is empty"));
    }
    Ok(text)
}

fn process_env(name: &str) -> Option<String> {
    std::env::var(name).ok().or_else(|| {
        // Shells set HOSTNAME without exporting it, and service managers not at
        // all; `replica_id: ${HOSTNAME}` is meant to work everywhere (semantics 11).
        let from_kernel = || std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
        (name == "HOSTNAME").then(from_kernel).flatten().map(|text| text.trim().to_owned())
    })
}

/// `file:line:column: key: message`, which editors can jump to.
fn located(path: &Path, finding: &Finding) -> String {
    let place = finding.at.map_or(String::new(), |at| format!(":{}:{}", at.line, at.column));
    let key = if finding.key.is_empty() { String::new() } else { format!("{}: ", finding.key) };
    format!("{}{place}: {key}{}", path.display(), finding.message)
}

fn refused(path: &Path, errors: &config::ConfigErrors) -> RunError {
    RunError::Config(errors.0.iter().map(|f| located(path, f)).collect::<Vec<_>>().join("\n"))
}

fn log_warnings(path: &Path, warnings: &[Finding]) {
    for warning in warnings {
        tracing::warn!(event = "config_warning", "{}", located(path, warning));
    }
}

fn hub_setup(args: &FileArgs) -> Result<HubSetup, RunError> {
    let options = ParseOptions { allow_unknown_keys: args.allow_unknown_keys };
    let text = read_file(&args.config)?;
    let mut setup = config::parse_hub(&text, &process_env, options).map_err(|e| refused(&args.config, &e))?;
    log_warnings(&args.config, &setup.warnings);
    let problems = files::of_hub(&setup);
    if !problems.is_empty() {
        return Err(RunError::Config(problems.join("\n")));
    }
    setup.fit_budget(container_memory_limit());
    Ok(setup)
}

fn agent_setup(args: &FileArgs) -> Result<AgentSetup, RunError> {
    let options = ParseOptions { allow_unknown_keys: args.allow_unknown_keys };
    let text = read_file(&args.config)?;
    let mut setup = config::parse_agent(&text, &process_env, options).map_err(|e| refused(&args.config, &e))?;
    log_warnings(&args.config, &setup.warnings);
    let problems = files::of_agent(&setup);
    if !problems.is_empty() {
        return Err(RunError::Config(problems.join("\n")));
    }
    setup.fit_budget(container_memory_limit());
    Ok(setup)
}

/// The container's memory limit in bytes, if there is one (cgroup v2, then v1).
fn container_memory_limit() -> Option<u64> {
    let files = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    files.iter().find_map(|file| std::fs::read_to_string(file).ok()?.trim().parse().ok())
}

fn check_config(path: &Path, kind: Option<KindArg>, options: ParseOptions) -> Result<(), RunError> {
    let text = read_file(path)?;
    let kind = match kind {
        Some(kind) => kind.into(),
        None => config::kind_of(&text).map_err(|e| refused(path, &e))?,
    };
    let (warnings, problems) = match kind {
        Kind::Hub => {
            let setup = config::parse_hub(&text, &process_env, options).map_err(|e| refused(path, &e))?;
            // A missing key to check tokens with is among the warnings already.
            let problems = files::of_hub(&HubSetup { warnings: Vec::new(), ..setup.clone() });
            let told = |p: &String| setup.auth.usable() || !p.starts_with("tunnel authentication");
            let told =
                problems.into_iter().filter(told).chain(files::mesh_doubts(&setup, now_unix()?)).collect::<Vec<_>>();
            (setup.warnings, told)
        }
        Kind::Agent => {
            let setup = config::parse_agent(&text, &process_env, options).map_err(|e| refused(path, &e))?;
            let problems = files::of_agent(&setup);
            (setup.warnings, problems)
        }
    };
    let mut stderr = std::io::stderr().lock();
    for warning in warnings.iter().map(|w| located(path, w)).chain(problems) {
        let _ = writeln!(stderr, "warning: {warning}");
    }
    let kind = match kind {
        Kind::Hub => "hub",
        Kind::Agent => "agent",
    };
    emit(&format!("{}: ok ({kind})", path.display()))
}

fn token(args: TokenArgs) -> Result<(), RunError> {
    let signer = match (args.signer.hmac_secret_file, args.signer.private_key_file) {
        (Some(file), None) => Signer::HmacSecretFile(file),
        (None, Some(file)) => Signer::PrivateKeyFile(file),
        _ => return Err(RunError::Config("give one of --hmac-secret-file and --private-key-file".to_owned())),
    };
    if args.ttl < Duration::from_secs(1) {
        return Err(RunError::Config("--ttl must be at least 1s".to_owned()));
    }
    let request = TokenRequest {
        agent: args.agent_id,
        connectors: args.connector,
        issuer: args.issuer,
        audience: args.audience,
        ttl: args.ttl,
    };
    if request.connectors.is_empty() {
        tracing::warn!(
            event = "token_without_connectors",
            "without --connector the agent may advertise nothing, unless auth.insecure_allow_unscoped is set"
        );
    }
    let token = cert::token(&request, &signer, now_unix()?).map_err(|e| RunError::Config(e.to_string()))?;
    emit(&token)
}

fn certificate(args: CertArgs) -> Result<(), RunError> {
    let subject = match (args.subject.hub, args.subject.agent) {
        (Some(name), _) => Subject::Hub { name, san: args.san },
        (None, Some(name)) => Subject::Agent { name },
        (None, None) => Subject::Ca,
    };
    let written = cert::make(&args.out, &subject, args.days, now_unix()?, args.force);
    for path in written.map_err(|e| RunError::Config(e.to_string()))? {
        emit(&path.display().to_string())?;
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a command that ends at once; nothing measures time with it")]
fn now_unix() -> Result<u64, RunError> {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map(|d| d.as_secs()).map_err(|_| RunError::Failed("the clock shows a time before 1970".to_owned()))
}

fn status(args: &StatusArgs) -> Result<(), RunError> {
    if let Some(answer) = args.schema {
        return emit(&format!("{:#}", answers::schema(answer)));
    }
    let body = args.admin.ask(|place| ask::get(place, "/status", args.timeout))?;
    match args.output {
        Output::Json => emit(&body),
        Output::Text => {
            let status = serde_json::from_str(&body)
                .map_err(|e| RunError::Failed(format!("the answer is no status of nowconnect: {e}")))?;
            emit(&ask::table(&status))
        }
    }
}

/// Says what needs a restart; the refusal is the error.
fn reload(args: &ReloadArgs) -> Result<(), RunError> {
    let (status, body) = args.admin.ask(|place| ask::post(place, "/reload", args.timeout))?;
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap_or_default();
    if status != "200" {
        let why = answer["error"].as_str().map_or(format!("status {status}"), ask::printable);
        return Err(RunError::Failed(why));
    }
    let keys = answer["needs_restart"].as_array().into_iter().flatten().filter_map(|k| k.as_str());
    for key in keys {
        emit(&format!("{}: takes effect with a restart", ask::printable(key)))?;
    }
    emit("applied")
}
