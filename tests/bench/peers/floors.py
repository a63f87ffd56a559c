from tests.bench.peers.dbos import Dbos
class BareRows(Dbos):
    def __init__(self, ours): pass
class BareFrames(Dbos): pass
