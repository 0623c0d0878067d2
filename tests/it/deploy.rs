//! The files for deployment (Dockerfile, compose file, systemd unit) are valid and fit the server's configuration. No
//! test here needs a container engine; `tests/it/deploy_proxy.rs` runs the proxy's configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use sealwire::config::Config;
use yaml_rust2::{Yaml, YamlLoader};

use crate::support::services::script;

/// The path of the binary in the unit.
const INSTALLED: &str = "/usr/local/bin/sealwire";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Loads the configuration from these settings, on top of a file or of the defaults alone.
fn config(file: Option<&str>, settings: impl IntoIterator<Item = (String, String)>) -> Config {
    let file = file.map(|file| root().join(file));
    Config::load(file.as_deref(), settings.into_iter()).unwrap_or_else(|error| panic!("{error}"))
}

/// Reads the compose file, and resolves the merge keys (`<<`) of its services.
fn compose() -> Yaml {
    let mut compose = YamlLoader::load_from_str(&read("compose.yaml")).unwrap().remove(0);
    for service in compose["services"].as_mut_hash().unwrap().values_mut() {
        if let Some(Yaml::Hash(shared)) = service.as_mut_hash().unwrap().remove(&Yaml::String("<<".to_owned())) {
            *service = Yaml::Hash(shared.into_iter().chain(service.as_hash().unwrap().clone()).collect());
        }
    }
    compose
}

/// Returns the strings of a list.
fn strings(list: &Yaml) -> Vec<&str> {
    list.as_vec().unwrap().iter().map(|item| item.as_str().unwrap()).collect()
}

fn services(compose: &Yaml) -> BTreeMap<&str, &Yaml> {
    let services = compose["services"].as_hash().unwrap();
    services.iter().map(|(name, service)| (name.as_str().unwrap(), service)).collect()
}

/// Returns whether a service is a node.
fn is_node(service: &Yaml) -> bool {
    service["image"].as_str() == Some("sealwire:local")
}

/// Returns the services that are nodes.
fn nodes(compose: &Yaml) -> Vec<&Yaml> {
    let nodes: Vec<_> = services(compose).into_values().filter(|service| is_node(service)).collect();
    assert!(nodes.len() >= 2, "two nodes or more");
    nodes
}

/// Replaces `${NAME:?…}` and `${NAME:-…}` by values, and calls `seen` with each name.
fn substitute(text: &str, mut seen: impl FnMut(&str)) -> String {
    let mut made = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("${") {
        let (variable, after) = after.split_once('}').unwrap();
        let name = variable.split(':').next().unwrap();
        seen(name);
        made += before;
        made += match (name, variable.split_once(":-")) {
            ("SEALWIRE_AUTH_SECRET", _) => "c2VhbHdpcmUtdGVzdC1zZWNyZXQtMzItYnl0ZXMtISE=",
            (_, Some((_, default))) => default,
            _ => "0123456789abcdef",
        };
        rest = after;
    }
    made + rest
}

fn environment(service: &Yaml) -> BTreeMap<String, String> {
    let pairs = service["environment"].as_hash().unwrap().iter();
    pairs.map(|(name, value)| (name.as_str().unwrap().to_owned(), value.as_str().unwrap().to_owned())).collect()
}

/// Parses a duration such as `30s` or `2m`.
fn parse_duration(text: &str) -> Duration {
    let (number, unit) = text.split_at(text.len() - 1);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        _ => panic!("{text}"),
    };
    Duration::from_secs(seconds * number.parse::<u64>().unwrap())
}

/// Returns the instructions of a Dockerfile's last stage, each with its arguments.
fn last_stage(dockerfile: &str) -> Vec<(String, String)> {
    let whole = dockerfile.replace("\\\n", " ");
    let lines = whole.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let all: Vec<(String, String)> = lines
        .map(|line| {
            let (instruction, arguments) = line.split_once(' ').unwrap();
            (instruction.to_owned(), arguments.split_whitespace().collect::<Vec<_>>().join(" "))
        })
        .collect();
    let last = all.iter().rposition(|(instruction, _)| instruction == "FROM").unwrap();
    all[last..].to_vec()
}

#[test]
fn the_image_runs_as_an_unprivileged_user_and_has_a_health_check() {
    let stage = last_stage(&read("Dockerfile"));
    let one = |name: &str| {
        let found: Vec<_> = stage.iter().filter(|(instruction, _)| instruction == name).collect();
        assert_eq!(found.len(), 1, "the last stage has one {name}");
        found[0].1.as_str()
    };
    let (user, group) = one("USER").split_once(':').unwrap();
    assert!(
        user.parse::<u32>().unwrap() > 0 && group.parse::<u32>().unwrap() > 0,
        "numbers, because some platforms check them"
    );
    assert_eq!(one("STOPSIGNAL"), "SIGTERM");
    let (_, check) = one("HEALTHCHECK").split_once("CMD ").unwrap();
    assert_eq!(check, r#"["/usr/local/bin/sealwire", "healthcheck"]"#, "there is no shell and no curl in the image");
    assert_eq!(one("ENTRYPOINT"), r#"["/usr/local/bin/sealwire"]"#);
    assert_eq!(one("CMD"), r#"["serve"]"#);

    let settings = one("ENV").split(' ').map(|pair| pair.split_once('=').unwrap());
    let config = config(None, settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    assert!(config.server.bind.ip().is_unspecified(), "reachable from outside the container");
    assert_eq!(one("EXPOSE"), config.server.bind.port().to_string());
    assert!(config.admin.bind.ip().is_loopback(), "the operator's listener is not, unless configured");
    assert!(config.database.url.reveal().starts_with(&format!("sqlite://{}/", one("VOLUME"))), "kept in the volume");
    let owned = format!("--chown={user}:{group} {0} {0}", one("VOLUME"));
    assert!(stage.iter().any(|(_, arguments)| arguments.ends_with(&owned)), "the volume belongs to that user");
}

#[test]
fn the_image_is_built_by_a_pinned_compiler_from_all_files_it_needs() {
    let dockerfile = read("Dockerfile");
    let images = dockerfile.lines().filter_map(|line| line.strip_prefix("FROM ")?.split(' ').next());
    let images: Vec<&str> = images.collect();
    let version = images[0].strip_prefix("rust:").unwrap().split('-').next().unwrap();
    let parts = |version: &str| -> Vec<u32> { version.split('.').map(|part| part.parse().unwrap()).collect() };
    assert_eq!(parts(version).len(), 2, "pinned to a minor version: {version}");
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let least = manifest["package"]["rust-version"].as_str().unwrap();
    assert!(parts(version) >= parts(least), "{version} is older than {least}");
    // Built on a newer Debian, the binary would need a newer C library than the image has.
    let debian = images[0].rsplit_once('-').unwrap().1;
    let number = match debian {
        "bookworm" => "debian12",
        "trixie" => "debian13",
        other => panic!("which Debian is {other}?"),
    };
    assert!(images[1].contains(number), "built on {debian}, run on {}", images[1]);

    let ignored = read(".dockerignore");
    let kept: BTreeSet<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignored.lines().any(|line| line == "*"), "all else is excluded, such as secrets and databases");
    let members = manifest["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| member.as_str().unwrap().trim_end_matches("/*"));
    for needed in
        ["Cargo.toml", "Cargo.lock", "src", "config", "migrations", "docs/operations.md"].into_iter().chain(members)
    {
        assert!(kept.contains(needed), "cargo needs {needed}");
    }
    assert!(kept.iter().all(|path| root().join(path).exists()), "{kept:?}");
}

#[test]
fn every_node_of_the_compose_file_has_valid_settings() {
    let compose = compose();
    for node in nodes(&compose) {
        let settings = environment(node).into_iter().map(|(name, value)| (name, substitute(&value, |_| {})));
        let config = config(None, settings);
        assert!(config.bus.url.reveal().starts_with("redis://") && config.server_secret().is_some());
        assert!(config.database.url.reveal().starts_with("postgres://"));
        assert!(
            parse_duration(node["stop_grace_period"].as_str().unwrap())
                > Duration::from_secs(config.server.drain_s + 5)
        );

        let names: Vec<_> = services(&compose).into_iter().filter(|(_, one)| is_node(one)).collect();
        assert_eq!(config.admin.allowed_hosts, names.iter().map(|(name, _)| *name).collect::<Vec<_>>());

        // The proxy's network, which no other service uses, is trusted to name client addresses.
        let subnet = compose["networks"]["front"]["ipam"]["config"][0]["subnet"].as_str().unwrap();
        assert_eq!(config.server.trusted_proxies, [subnet.parse().unwrap()]);
        assert_eq!(strings(&node["networks"]), ["front", "back"]);
        assert!(node["ports"].is_badvalue(), "only the proxy can be reached from outside");
        assert_eq!(strings(&node["cap_drop"]), ["ALL"]);
        assert_eq!(node["read_only"].as_bool(), Some(true));
    }
    // If two services build an image of the same name at once, the first build fails.
    let built = nodes(&compose).into_iter().filter(|node| !node["build"].is_badvalue());
    assert_eq!(built.count(), 1, "the image is built once");
    assert!(nodes(&compose).into_iter().all(|node| {
        let is_built = !node["build"].is_badvalue();
        is_built || node["pull_policy"].as_str() == Some("never")
    }));
    let shared: BTreeSet<_> = nodes(&compose).into_iter().map(environment).collect();
    assert_eq!(shared.len(), 1, "all nodes have the same settings");
    for (name, service) in services(&compose) {
        let on_front = strings(&service["networks"]).contains(&"front");
        assert!(!on_front || name == "proxy" || is_node(service), "{name} is on the proxy's network");
    }
}

#[test]
fn compose_services_wait_for_their_dependencies_and_publish_only_local_ports() {
    let compose = compose();
    let all = services(&compose);
    let mut conditions = 0;
    for (name, service) in &all {
        // Nodes have the image's health check.
        let checked = |service: &Yaml| is_node(service) || !service["healthcheck"]["test"].is_badvalue();
        assert!(checked(service), "{name} has no health check");
        for (needed, how) in service["depends_on"].as_hash().into_iter().flatten() {
            assert_eq!(how["condition"].as_str(), Some("service_healthy"), "{name}");
            assert!(all.contains_key(needed.as_str().unwrap()), "{name}");
            conditions += 1;
        }
        for port in service["ports"].as_vec().into_iter().flatten() {
            assert!(matches!(*name, "proxy" | "mail"), "{name} publishes a port");
            let outside = substitute(port.as_str().unwrap(), |_| {});
            assert!(
                outside.starts_with("127.0.0.1:"),
                "{name} publishes a port beyond localhost by default: {outside}"
            );
        }
        let image = service["image"].as_str().unwrap();
        let (_, tag) = image.rsplit_once(':').unwrap_or_else(|| panic!("{image} names no version"));
        assert_ne!(tag, "latest");
    }
    assert!(conditions >= 2 * 3 + 2, "only {conditions} dependencies have a condition");
    let upstreams = environment(all["proxy"]).remove("NODES").unwrap();
    for upstream in upstreams.split(' ') {
        let (host, port) = upstream.split_once(':').unwrap();
        let bind: SocketAddr = environment(all[host])["SEALWIRE__SERVER__BIND"].parse().unwrap();
        assert_eq!(bind.port().to_string(), port);
    }
    assert_eq!(upstreams.split(' ').count(), nodes(&compose).len());
}

#[test]
fn env_example_lists_every_variable_of_the_compose_file_and_no_secret_has_a_default() {
    let example = read(".env.example");
    let listed: BTreeMap<&str, &str> =
        example.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect();
    let mut used = BTreeSet::new();
    let text = read("compose.yaml");
    substitute(&text, |name| {
        used.insert(name.to_owned());
    });
    assert_eq!(listed.keys().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>(), used);
    for (name, value) in listed {
        let is_secret = ["PASSWORD", "SECRET", "TOKEN"].iter().any(|kind| name.contains(kind));
        assert!(!is_secret || value.is_empty(), "each operator must generate {name}");
        assert!(!is_secret || text.contains(&format!("${{{name}:?")), "compose starts nothing without {name}");
    }
    assert!(read(".gitignore").lines().any(|line| line == "/.env"), "the file with the secrets is not committed");
}

#[test]
fn the_systemd_unit_is_valid_and_its_paths_match_the_configuration() {
    let unit = read("deploy/sealwire.service");
    let of = |key: &str| {
        let found: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect();
        assert_eq!(found.len(), 1, "the unit has one {key}");
        found[0]
    };
    for (key, value) in [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("Restart", "on-failure"),
        ("KillSignal", "SIGTERM"),
        ("StateDirectory", "sealwire"),
    ] {
        assert_eq!(of(key), value, "{key}");
    }
    assert!(of("LimitNOFILE").parse::<u32>().unwrap() >= 100_000, "a socket is a file");
    let config = config(Some("config/production.toml"), []);
    assert!(
        Duration::from_secs(of("TimeoutStopSec").parse().unwrap()) > Duration::from_secs(config.server.drain_s + 5)
    );
    let state = format!("/var/lib/{}", of("StateDirectory"));
    assert_eq!(of("WorkingDirectory"), state);
    assert!(config.database.url.reveal().starts_with(&format!("sqlite://{state}/")), "the only place it may write to");
    let (binary, arguments) = of("ExecStart").split_once(' ').unwrap();
    assert_eq!((binary, arguments), (INSTALLED, "serve --config /etc/sealwire/sealwire.toml"));

    // With the path of the test's binary, because systemd refuses a unit whose binary does not exist.
    script(&["need", "systemd-analyze", "systemd"]);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("sealwire.service");
    fs::write(&file, unit.replace(INSTALLED, env!("CARGO_BIN_EXE_sealwire"))).unwrap();
    let (holds, said) = analyze(&["verify"], &file);
    assert!(holds && !said.contains("sealwire.service"), "{said}");
    // At most 2.0 of 10, where 0 is the safest. The rest is due to its use of the network.
    let (holds, said) = analyze(&["security", "--offline=true", "--threshold=20"], &file);
    assert!(holds, "{said}");
}

fn analyze(arguments: &[&str], unit: &Path) -> (bool, String) {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.success(), said)
}
