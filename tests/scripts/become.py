"""Make a process that has the libraries what `python words...` would be (conftest.py forks it).

Globals that `runpy.run_path` is given: words, a script's path and its arguments; folder, where it
runs; streams, the files that get its stdout and stderr.
"""

import multiprocessing.forkserver
import os
import runpy
import signal
import sys

words, folder, streams = globals()["words"], globals()["folder"], globals()["streams"]
for number, name in enumerate(streams, start=1):
    file = os.open(name, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, number)
    os.close(file)
# Its own processes come from the same server; a second one would import everything again.
multiprocessing.forkserver._forkserver.ensure_running = lambda: None
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores Ctrl-C
os.chdir(folder)
sys.argv = words
runpy.run_path(words[0], run_name="__main__")
