"""A service manager in small (sd_listen_fds(3)): listens, then becomes the daemon.

usage: manager.py NAME=unix:PATH|NAME=tcp:PORT-FILE ... -- COMMAND...
A TCP port is any free one of loopback and is written to PORT-FILE.
"""
import os
import socket
import sys

split = sys.argv.index("--")
names, listeners = [], []
for given in sys.argv[1:split]:
    name, kind, place = given.replace("=", ":", 1).split(":", 2)
    if kind == "unix":
        listener = socket.socket(socket.AF_UNIX)
        # PassCredentials=yes, as deploy/systemd/ephor-agent.socket has it.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        listener.bind(place)
    else:
        listener = socket.socket(socket.AF_INET)
        listener.bind(("127.0.0.1", 0))
    listener.listen(16)
    if kind == "tcp":
        with open(place + ".new", "w") as port:
            port.write(str(listener.getsockname()[1]))
        os.rename(place + ".new", place)
    names.append(name)
    # Out of the way of the places that they are to have.
    listeners.append(os.dup(listener.fileno()) if listener.fileno() >= 50 else listener.detach())
high = [os.dup2(fd, 100 + place) for place, fd in enumerate(listeners)]
for place, fd in enumerate(high):
    os.dup2(fd, 3 + place, inheritable=True)
    os.close(fd)
os.environ.update(
    LISTEN_FDS=str(len(names)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES=":".join(names)
)
os.execv(sys.argv[split + 1], sys.argv[split + 1 :])
