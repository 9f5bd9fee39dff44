"""``sys.executable`` of the programs of ``programs.py``: lets their server fork what they start with ``python -m``.

It has the process id that its parent expects: it forwards signals, ends as the forked process does, and takes it along
when it is killed. It imports nothing that is not compiled in: it starts in the time of an empty program.
"""

import _signal
import _socket
import marshal
import os
import sys

door, python, *arguments = sys.argv[1:]
module = arguments[arguments[:1] == ["-u"] :]
if module[:1] != ["-m"] or module[1] == "submitit.local._local":  # whose files are named after its process
    os.execv(python, [python, *arguments])


def inherited(number):
    try:
        return os.get_inheritable(number)
    except OSError:  # the one that lists the others
        return False


numbers = [number for number in map(int, os.listdir("/dev/fd")) if inherited(number)]  # noqa: PTH208 - pathlib: 20 ms
parent = os.getppid()
order = {
    "name": module[1],
    "arguments": module[2:],
    "cwd": os.getcwd(),  # noqa: PTH109
    "env": dict(os.environ),
    "numbers": numbers,
    "parent": parent,
    "leader": os.getpgrp() == os.getpid(),
}
content = marshal.dumps(order)
connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
connection.connect(door)
files = b"".join(number.to_bytes(4, sys.byteorder) for number in numbers)
connection.sendmsg([len(content).to_bytes(8, "big")], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, files)])
connection.sendall(content)
for number in numbers:
    os.close(number)  # a reader at the other end waits for the last that has it
for number in (_signal.SIGINT, _signal.SIGTERM, _signal.SIGUSR1, _signal.SIGUSR2):
    _signal.signal(number, lambda number, frame: connection.send(bytes([number])))
connection.settimeout(1)
while True:
    try:
        code = int(connection.recv(8) or -9)
        break
    except TimeoutError:
        if os.getppid() != parent:  # the fork notices it as this process would have
            connection.send(b"\0")
            os._exit(1)
if code < 0:
    if code != -_signal.SIGKILL:
        _signal.signal(-code, _signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
