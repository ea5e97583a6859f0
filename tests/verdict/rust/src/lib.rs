//! What the programs share: a server that answers each request with what a function makes of it.

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
};

/// Serves HTTP on a free port, which it prints.
pub async fn serve<F: Future<Output = String> + Send + 'static>(answer: fn() -> F) -> std::io::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("ready port={}", listener.local_addr()?.port());
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut stream = BufReader::new(stream);
            let mut line = String::new();
            while stream.read_line(&mut line).await.is_ok_and(|length| length > 0) {
                if line == "\r\n" {
                    let body = answer().await;
                    let text = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(text.as_bytes()).await.is_err() {
                        return;
                    }
                }
                line.clear();
            }
        });
    }
}
