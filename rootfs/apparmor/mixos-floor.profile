# The downgrade floor in the TPM: the only program that may use one.
include <include/variables>

profile mixos-floor /usr/libexec/mixos-floor {
  include <include/program>
  include <include/python>

  /usr/libexec/mixos-floor r,
  /etc/{passwd,group} r,
  /dev/tpmrm0 rw,
  # To become the account `update`, which has none.
  capability setgid,
  capability setpcap,
  capability setuid,
}
