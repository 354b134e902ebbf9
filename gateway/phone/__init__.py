"""A terminal phone: Twilio's side of a call, spoken to any gateway.

    report = await place_call(CallOptions(url="http://127.0.0.1:8080", caller=caller))

`playout`, `metrics`, `twiml` and `caller` are pure; `stream` holds the WebSocket, `call` the HTTP side.
"""
