# Fetches releases from web servers, for the programs that judge and install them: it has the network and writes no file.
include <include/variables>

profile mixos-fetch /usr/libexec/mixos-fetch {
  include <include/program>
  include <include/python>
  include <include/names>

  /usr/libexec/mixos-fetch r,
  # Certificates, where the administrator has put some; private keys are not among them.
  /etc/ssl/{cert.pem,openssl.cnf} r,
  /etc/ssl/certs/{,**} r,

  # To become the account `update`, which has none.
  capability setgid,
  capability setpcap,
  capability setuid,
}
