//! Keeps the UDP port of VXLAN from the node's processes, also while no vxlan device of a network is up.

use std::{fs::File, io, os::fd::AsRawFd, thread};

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkMessageBuilder, LinkVxlan};

use super::{
    Error, Socket,
    links::{change, create, delete, quiet},
};

/// No network can have it: tables refuse it, and engines begin at 4096.
const NO_VNI: u32 = 0;
const DEVICE: &str = "hw-port";

/// A vxlan device whose socket holds the port in the node's namespace. Networks' own devices come up beside it: vxlan
/// devices share the socket of a port where their flags for receiving are equal, and this one has none, as Hiveway's
/// and an engine's. One with flags of its own (`external`, `gbp`) cannot come up beside any of them.
///
/// The device itself is in a network namespace that is otherwise empty, as an engine's devices are in their networks':
/// what arrives with its VNI meets no address, and it has no destination to send to. The namespace, and the device with
/// it, ends with this value, or with the process.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _namespace: File,
}

impl Port {
    /// Takes the UDP port `number` in the namespace of `node`.
    ///
    /// # Errors
    /// `EADDRINUSE` where a process has it, or a vxlan device with other flags. `EEXIST` where there is such a device:
    /// a former agent's, whose namespace is still being taken down, say.
    pub async fn hold(node: &Socket, number: u16) -> Result<Self, Error> {
        let what = format!("hold UDP port {number}");
        let failed = |source| Error::Kernel { what: what.clone(), source };
        let namespace = empty_namespace().map_err(failed)?;
        let device = LinkMessageBuilder::<LinkVxlan>::new(DEVICE)
            .id(NO_VNI)
            .port(number)
            .learning(false)
            .setns_by_fd(namespace.as_raw_fd())
            .build();
        node.change(&what, create(node, &what, device)).await?;
        let inside = Socket::open_in(&namespace).map_err(failed)?;
        let up = async {
            quiet(&inside, DEVICE).await?;
            change(&inside, &what, DEVICE, |link| link.up()).await
        };
        if let Err(error) = inside.change(&what, up).await {
            // Else it stays until the kernel has taken its namespace down, and stands in the next one's way.
            let _ = inside.change(&what, delete(&inside, DEVICE)).await;
            return Err(error);
        }
        Ok(Self { number, _namespace: namespace })
    }

    /// Which one is held.
    pub fn number(&self) -> u16 {
        self.number
    }
}

/// A new network namespace, without a process in it.
fn empty_namespace() -> io::Result<File> {
    let made = thread::Builder::new().spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        File::open("/proc/thread-self/ns/net")
    })?;
    made.join().unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
}
