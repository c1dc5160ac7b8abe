//! The way that an image takes: mirrors, proxies, HTTPS, several fetches at once, the free space.

use std::io::{BufRead as _, BufReader};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use nestlab::Kind;

use super::place::{Place, noise, parse};
use crate::support::publisher::Publisher;
use crate::support::publisher::proxy::Proxy;
use crate::support::publisher::server::{Answer, Pace, Server, good};

#[tokio::test(flavor = "multi_thread")]
async fn the_next_mirror_is_tried_after_an_error_a_stall_and_a_failed_proof() {
    let wrong = Arc::<[u8]>::from(noise(2_000_000));
    for trouble in ["missing", "silent", "tampered"] {
        let mut place = Place::new();
        if trouble == "silent" {
            place.options.stall = Duration::from_secs(4);
        }
        place.options.attempts = 2;
        let manifest = place.manifest_with_mirror("/mirror");
        let path = format!("/mirror/{}", place.release.file);
        for end in [".asc", ".sha512sums", ".sha512sums.asc", ".sha512sums.sig"] {
            let body = place.publisher.server.current(&place.release.beside(end));
            place.publisher.server.serve(&format!("{path}{end}"), body.expect("published"));
        }
        let right = place.release.bytes.clone();
        match trouble {
            "silent" => place
                .publisher
                .server
                .answer(&path, move |request| good(request, &right).pace(Pace::SilentAfter(1000))),
            "tampered" => place.publisher.server.serve(&path, wrong.clone()),
            _ => {}
        }
        let image = place.get(&manifest).await;
        let image = image.unwrap_or_else(|error| panic!("{trouble}: {}", error.report()));
        place.is_whole(&image);
        assert_eq!(place.ranges().len(), 1, "{trouble}: {:?}", place.ranges());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fetching_one_image_many_times_at_once_downloads_it_once() {
    let place = Arc::new(Place::new());
    let tasks: Vec<_> = (0..6)
        .map(|_| {
            let place = place.clone();
            tokio::spawn(async move { place.arrives().await })
        })
        .collect();
    let images = futures::future::join_all(tasks).await;
    let paths: Vec<_> = images.into_iter().map(|image| image.expect("done").path()).collect();
    assert!(paths.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(place.ranges(), [None]);
}

#[test]
fn two_processes_share_one_download() {
    let place = Place::new();
    let manifest = place.folder.path().join("image.toml");
    fs_err::write(&manifest, place.publisher.manifest_toml(&place.release)).expect("writes");
    let (started, go) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let (at_server, let_go) = (started.clone(), go.clone());
    place.answer(move |answer, earlier| {
        if earlier == 0 {
            at_server.wait();
            let_go.wait();
        }
        answer
    });
    // The first process is let go only once the second one says that it waits for it.
    let spawn = || {
        let mut command = std::process::Command::new(assert_cmd::cargo::cargo_bin("nestlab"));
        command
            .env_clear()
            .env("HOME", place.folder.path())
            .args(["image", "fetch"])
            .arg(&manifest)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .expect("starts")
    };
    let first = spawn();
    started.wait();
    let mut second = spawn();
    let mut told = BufReader::new(second.stderr.take().expect("piped")).lines();
    let waits =
        |line: std::io::Result<String>| line.expect("reads").contains("waiting for another run");
    assert!(told.any(waits), "the second ended without waiting for the first");
    go.wait();
    let rest: Vec<_> = told.collect();
    let outputs = [first, second].map(|child| child.wait_with_output().expect("ends"));
    for output in &outputs {
        assert!(output.status.success(), "{output:?}, {rest:?}");
    }
    assert_eq!(outputs[0].stdout, outputs[1].stdout);
    assert_eq!(place.ranges(), [None]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socks_proxy_is_used_and_looks_the_name_up_itself() {
    let mut place = Place::new();
    let proxy = Proxy::socks5(place.publisher.server.address());
    place.options.proxy =
        Some(format!("socks5h://{}", proxy.address()).parse().expect("an address"));
    // A name that exists nowhere; only the proxy leads it to the publisher.
    let text = place.publisher.manifest_toml(&place.release);
    let text = text.replace(&place.publisher.server.url(), "http://images.invalid");
    let image = place.get(&parse(&text.replace("arch", "allow-http = true\narch"))).await;
    place.is_whole(&image.unwrap_or_else(|error| panic!("{}", error.report())));
    assert!(proxy.asked().iter().all(|name| name == "images.invalid"), "{:?}", proxy.asked());
    assert!(!proxy.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_onion_address_needs_no_https_for_it_is_its_own_key() {
    let mut place = Place::new();
    let proxy = Proxy::socks5(place.publisher.server.address());
    place.options.proxy =
        Some(format!("socks5h://{}", proxy.address()).parse().expect("an address"));
    let text = place.publisher.manifest_toml(&place.release);
    let onion = format!("http://{}.onion", "a".repeat(56));
    let image = place.get(&parse(&text.replace(&place.publisher.server.url(), &onion))).await;
    place.is_whole(&image.unwrap_or_else(|error| panic!("{}", error.report())));
}

#[test]
fn the_proxy_of_the_environment_is_used() {
    let place = Place::new();
    let proxy = Proxy::http(place.publisher.server.address());
    let text = place.publisher.manifest_toml(&place.release);
    let text = text.replace(&place.publisher.server.url(), "http://images.invalid");
    let manifest = place.folder.path().join("image.toml");
    fs_err::write(&manifest, text.replace("arch", "allow-http = true\narch")).expect("writes");
    let output = assert_cmd::Command::cargo_bin("nestlab")
        .expect("built")
        .env_clear()
        .env("HOME", place.folder.path())
        .env("http_proxy", format!("http://{}", proxy.address()))
        .args(["image", "fetch"])
        .arg(&manifest)
        .output()
        .expect("runs");
    assert!(output.status.success(), "{output:?}");
    assert!(proxy.asked().iter().any(|name| name == "images.invalid"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_cannot_fit_is_refused_before_it_is_fetched() {
    let place = Place::new();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    place.answer(move |answer, _| {
        count.fetch_add(1, Ordering::SeqCst);
        answer.header("content-length", (1_u64 << 50).to_string()).pace(Pace::SilentAfter(10))
    });
    let error = place.get(&place.manifest()).await.expect_err("a pebibyte");
    assert_eq!(error.kind(), Kind::HostCannot);
    assert!(error.report().contains("MiB are free"), "{}", error.report());
    assert_eq!(sent.load(Ordering::SeqCst), 1, "no second try: it is not the server's fault");
}

#[test]
fn https_needs_a_trusted_certificate_and_never_falls_back_to_http() {
    let home = tempfile::tempdir().expect("a folder");
    let (publisher, certificate) = Publisher::start_tls();
    let release = publisher.publish_raw("18.2.1.9", noise(100_000));
    let manifest = home.path().join("image.toml");
    fs_err::write(&manifest, publisher.manifest_toml(&release)).expect("writes");
    let trusted = home.path().join("certificate.pem");
    fs_err::write(&trusted, certificate).expect("writes");
    let other = home.path().join("other.pem");
    fs_err::write(&other, Server::start_tls().1).expect("writes");
    let fetch = |certificate: &std::path::Path| {
        let mut command = assert_cmd::Command::cargo_bin("nestlab").expect("built");
        command
            .env_clear()
            .env("HOME", home.path())
            .env("SSL_CERT_FILE", certificate)
            .args(["image", "fetch"])
            .arg(&manifest);
        command.output().expect("runs")
    };
    let output = fetch(&other);
    assert_eq!(output.status.code(), Some(5), "the certificate is nobody's: {output:?}");

    let plain = Server::start();
    plain.serve("/image", release.bytes.clone());
    let location = format!("{}/image", plain.url());
    publisher.server.answer(&release.path, move |_| {
        Answer::new(302, *b"").header("location", location.clone())
    });
    let output = fetch(&trusted);
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("redirected from HTTPS"), "{told}");
    assert!(plain.requests().is_empty(), "nobody asked over plain HTTP");

    publisher.server.serve(&release.path, release.bytes.clone());
    let output = fetch(&trusted);
    assert!(output.status.success(), "{output:?}");
}
