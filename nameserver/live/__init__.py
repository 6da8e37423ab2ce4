"""Events as they happen, over Socket.IO (docs/API.md).

`hub` and `follower` decide what is told to whom; `sockets` alone knows Flask-SocketIO; `websocket`
and `outbox` are the parts of Engine.IO that are ours.
"""
