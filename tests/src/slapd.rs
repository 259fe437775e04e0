//! A real OpenLDAP server with generated entries, in a directory of its own,
//! and command lines for the tools that ask it.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::certs::Authority;
use crate::ports::Port;
use crate::process::{Process, installed, run};
use crate::wait::{PATIENCE, eventually};

/// Suffix of the directory.
pub const BASE: &str = "dc=example,dc=org";
/// Who may write.
pub const ADMIN: &str = "cn=admin,dc=example,dc=org";
/// The administrator's password.
pub const PASSWORD: &str = "not-a-secret";
/// People in the directory.
pub const PEOPLE: usize = 3000;

/// An LDAP search request as it goes over the wire (RFC 4511 4.5.1): message
/// 1, base `dc=example,dc=org`, whole subtree, no limits, `(objectClass=*)`,
/// all attributes.
pub const SEARCH_ALL: &[u8] = b"\x30\x36\x02\x01\x01\x63\x31\
    \x04\x11dc=example,dc=org\x0a\x01\x02\x0a\x01\x00\x02\x01\x00\x02\x01\x00\x01\x01\x00\
    \x87\x0bobjectClass\x30\x00";

/// A running directory server.
pub struct Slapd {
    /// The process, for signals.
    pub process: Process,
    port: Port,
    dir: TempDir,
}

impl Slapd {
    /// Loads the entries, starts the server and waits until it accepts.
    ///
    /// # Panics
    /// When slapd is missing or does not start.
    pub async fn start() -> Self {
        let slapd = installed("slapd", "slapd");
        let dir = TempDir::with_prefix("nowconnect-slapd-").unwrap();
        let root = dir.path();
        let authority = Authority::create(root, "ca");
        let files = authority.issue("slapd", &["localhost", "127.0.0.1"]);
        fs::create_dir(root.join("db")).unwrap();
        let config = root.join("slapd.conf");
        fs::write(&config, configuration(root, &files.cert, &files.key)).unwrap();
        let ldif = root.join("people.ldif");
        fs::write(&ldif, people()).unwrap();

        // slapd answers to the name it is called by: `-T add` makes it slapadd.
        let mut load = Command::new(&slapd);
        load.arg("-Ta").arg("-q").arg("-f").arg(&config).arg("-l").arg(&ldif);
        let loaded = run(load).await;
        assert!(loaded.status.success(), "slapadd failed: {}", loaded.stderr);

        let port = Port::reserve();
        let mut command = Command::new(&slapd);
        command.args(["-d", "0", "-h", &format!("ldap://{}", port.addr)]).arg("-f").arg(&config);
        let process = Process::spawn("slapd", command);
        eventually("slapd accepts", PATIENCE, || async { TcpStream::connect(port.addr).await.ok() }).await;
        Self { process, port, dir }
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.port.addr
    }

    /// The certificate authority its StartTLS certificate is from.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// An LDAP tool (`ldapsearch`, `ldapmodify` ...) aimed at `addr`, with
    /// simple authentication and without the machine's own configuration.
    #[must_use]
    pub fn tool(&self, tool: &str, addr: SocketAddr) -> Command {
        let mut command = Command::new(installed(tool, "ldap-utils"));
        command.env_remove("LDAPCONF").env_remove("LDAPRC").env("HOME", self.dir.path());
        command.env("LDAPTLS_CACERT", self.ca()).env("LDAPTLS_REQCERT", "demand");
        command.args(["-x", "-o", "nettimeout=60", "-H", &format!("ldap://{addr}")]);
        command
    }

    /// As [`Slapd::tool`], bound as administrator.
    #[must_use]
    pub fn admin_tool(&self, tool: &str, addr: SocketAddr) -> Command {
        let mut command = self.tool(tool, addr);
        command.args(["-D", ADMIN, "-w", PASSWORD]);
        command
    }

    /// A directory for files of a test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

fn configuration(root: &Path, cert: &Path, key: &Path) -> String {
    let root = root.display();
    format!(
        "include /etc/ldap/schema/core.schema\n\
         include /etc/ldap/schema/cosine.schema\n\
         include /etc/ldap/schema/inetorgperson.schema\n\
         pidfile {root}/slapd.pid\n\
         modulepath /usr/lib/ldap\n\
         moduleload back_mdb\n\
         TLSCACertificateFile {root}/ca.pem\n\
         TLSCertificateFile {}\n\
         TLSCertificateKeyFile {}\n\
         sizelimit unlimited\n\
         threads 4\n\
         access to * by * read\n\
         database mdb\n\
         suffix \"{BASE}\"\n\
         rootdn \"{ADMIN}\"\n\
         rootpw {PASSWORD}\n\
         directory {root}/db\n\
         maxsize 268435456\n\
         dbnosync\n\
         index objectClass eq\n\
         index uid eq\n",
        cert.display(),
        key.display(),
    )
}

fn people() -> String {
    let mut ldif = format!(
        "dn: {BASE}\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example\n\n\
         dn: ou=people,{BASE}\nobjectClass: organizationalUnit\nou: people\n\n"
    );
    for n in 0..PEOPLE {
        // Lengths vary so that entries end at every position of a frame.
        let note = "lorem ipsum dolor sit amet ".repeat(1 + n % 23);
        let _ = write!(
            ldif,
            "dn: uid=u{n:05},ou=people,{BASE}\nobjectClass: inetOrgPerson\nuid: u{n:05}\ncn: Person {n}\nsn: Number {n}\n\
             mail: u{n:05}@example.org\ntelephoneNumber: +49 30 {n:07}\ndescription: {}.\n\n",
            note.trim_end()
        );
    }
    ldif
}
