# mixosd's door to the system bus: messages of every account that the bus lets through.
include <include/variables>

profile dbus-door {
  include <include/part>

  /run/dbus/system_bus_socket rw,
  /etc/machine-id r,
}
