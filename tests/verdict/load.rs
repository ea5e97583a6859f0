//! Sends HTTP requests at a steady rate until it is killed.
//!
//!     load PORT [rate=REQUESTS_PER_SECOND] [connections=N] [path=/PATH] [post=BYTES] [keepalive=no]
//!
//! A connection that is late leaves requests out: load never piles up behind a server that cannot keep up. `*` in a
//! path stands for a number that never comes twice. What is posted is a JSON array.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

static REQUESTS: AtomicU64 = AtomicU64::new(0);

#[derive(Clone)]
struct Load {
    port: u16,
    rate: f64,
    connections: u32,
    path: String,
    body: String,
    keep_alive: bool,
}

fn main() {
    let mut load =
        Load { port: 0, rate: 20.0, connections: 2, path: "/".into(), body: String::new(), keep_alive: true };
    for word in std::env::args().skip(1) {
        match word.split_once('=') {
            None => load.port = word.parse().expect("a port"),
            Some(("rate", value)) => load.rate = value.parse().expect("a rate"),
            Some(("connections", value)) => load.connections = value.parse().expect("a number"),
            Some(("path", value)) => load.path = value.into(),
            Some(("post", value)) => load.body = array(value.parse().expect("a size")),
            Some(("keepalive", value)) => load.keep_alive = value == "yes",
            Some(_) => panic!("what is {word}?"),
        }
    }
    let connections: Vec<_> = (0..load.connections)
        .map(|number| {
            let load = load.clone();
            thread::spawn(move || run(&load, number))
        })
        .collect();
    connections.into_iter().for_each(|connection| drop(connection.join()));
}

fn array(bytes: usize) -> String {
    let mut text = String::from("[0");
    while text.len() < bytes {
        text.push_str(",{\"id\":12345,\"name\":\"a customer\",\"tags\":[1,2,3]}");
    }
    text + "]"
}

/// One connection's share of the load, spread evenly between those of the others.
fn run(load: &Load, number: u32) {
    let pause = Duration::from_secs_f64(f64::from(load.connections) / load.rate);
    let mut due = Instant::now() + pause * number / load.connections;
    let mut connection = None;
    loop {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        due = (due + pause).max(Instant::now());
        if connection.is_none() {
            connection = TcpStream::connect(("127.0.0.1", load.port)).map(BufReader::new).ok();
        }
        let answered = connection.as_mut().is_some_and(|connection| request(load, connection).is_ok());
        if !answered || !load.keep_alive {
            connection = None;
        }
    }
}

fn request(load: &Load, connection: &mut BufReader<TcpStream>) -> io::Result<()> {
    let path = load.path.replace('*', &REQUESTS.fetch_add(1, Ordering::Relaxed).to_string());
    let method = if load.body.is_empty() { "GET" } else { "POST" };
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        load.body.len()
    );
    connection.get_mut().write_all((head + &load.body).as_bytes())?;
    let (mut length, mut chunked) = (0, false);
    loop {
        let line = line(connection)?.to_ascii_lowercase();
        match line.split_once(':') {
            _ if line.is_empty() => break,
            Some(("content-length", value)) => length = value.trim().parse().map_err(io::Error::other)?,
            Some(("transfer-encoding", value)) => chunked = value.contains("chunked"),
            _ => {}
        }
    }
    while chunked {
        length = usize::from_str_radix(&line(connection)?, 16).map_err(io::Error::other)?;
        skip(connection, length)?;
        line(connection)?;
        if length == 0 {
            return Ok(());
        }
    }
    skip(connection, length)
}

fn line(connection: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    match connection.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line.trim_end().to_owned()),
    }
}

fn skip(connection: &mut BufReader<TcpStream>, length: usize) -> io::Result<()> {
    io::copy(&mut connection.take(length as u64), &mut io::sink()).map(drop)
}
