//! A TCP server by hand: a mio `TcpListener` on the reactor, and its clients, in one program that ends by itself.
//!
//! The server greets each client and sends back what it is told, in capitals. Everything of the server's happens on the
//! reactor's one thread; the clients are blocking code, so they run in the thread pool. The library has no protocols
//! yet: this is what one writes in their stead.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use errback::mio::Interest;
use errback::mio::net::{TcpListener, TcpStream};
use errback::{Deferred, Failure, Reactor, Registered, gather_results, react, try_deferred};

fn main() -> ExitCode {
    react(|reactor: &Reactor| try_deferred(|| serve_and_ask(reactor)))
}

fn serve_and_ask(reactor: &Reactor) -> Result<Deferred<()>, Failure> {
    let server = listen(reactor)?;
    println!("listening on {server}");
    let clients =
        ["ada", "grace", "barbara"].map(|name| reactor.defer_to_thread(move || ask(server, name)));
    Ok(gather_results(clients).add_callback(|answers| println!("{}", answers.join("\n"))))
}

/// Listens on a free port, until the reactor ends.
fn listen(reactor: &Reactor) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
    let address = listener.local_addr()?;
    let acceptor = reactor.clone();
    let listening = reactor.register(listener, Interest::READABLE, move |listener, _event| {
        // Events are edge-triggered: accept until there is nobody left.
        while let Ok((stream, peer)) = listener.source().accept() {
            if let Err(error) = greet(&acceptor, stream) {
                eprintln!("{peer}: {error}");
            }
        }
    })?;
    listening.keep();
    Ok(address)
}

fn greet(reactor: &Reactor, stream: TcpStream) -> io::Result<()> {
    let mut connection = Connection {
        unsent: b"Hello, who is there?\n".to_vec(),
        ended: false,
    };
    let interest = Interest::READABLE | Interest::WRITABLE; // the first event is 'writable': the greeting goes out
    reactor
        .register(stream, interest, move |stream, _event| {
            connection.advance(stream)
        })?
        .keep();
    Ok(())
}

/// The server's side of one connection.
struct Connection {
    unsent: Vec<u8>,
    /// The client has said all that it has to say.
    ended: bool,
}

impl Connection {
    /// Reads and writes as far as the socket goes.
    fn advance(&mut self, stream: &Registered<TcpStream>) {
        let through = match self.read(stream).and_then(|()| self.write(stream)) {
            Ok(()) => self.ended && self.unsent.is_empty(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => false, // another event will come
            Err(_) => true,
        };
        if through {
            let _ = stream.deregister(); // the reactor lets go of the socket, and so it is closed
        }
    }

    fn read(&mut self, mut stream: &Registered<TcpStream>) -> io::Result<()> {
        let mut buffer = [0; 1024];
        while !self.ended {
            match stream.read(&mut buffer) {
                Ok(0) => self.ended = true,
                Ok(count) => self.unsent.extend(buffer[..count].to_ascii_uppercase()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn write(&mut self, mut stream: &Registered<TcpStream>) -> io::Result<()> {
        while !self.unsent.is_empty() {
            let count = stream.write(&self.unsent)?;
            self.unsent.drain(..count);
        }
        Ok(())
    }
}

/// A client, in blocking code.
fn ask(server: SocketAddr, name: &str) -> Result<String, Failure> {
    let mut stream = std::net::TcpStream::connect(server)?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let greeting = lines.next().ok_or_else(|| Failure::msg("no greeting"))??;
    writeln!(stream, "it is {name}")?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let answer = lines.next().ok_or_else(|| Failure::msg("no answer"))??;
    Ok(format!(
        "server: {greeting}  {name}: it is {name}  server: {answer}"
    ))
}
