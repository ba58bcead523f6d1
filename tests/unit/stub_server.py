"""A server on loopback that speaks every interface and knows the answers, for tests; what it does wrong is put in."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SGLANG = {"version": "0.5.9", "model_path": "/models/m", "dllm_algorithm": "LowConfidence", "max_running_requests": 4}


class StubServer:
    """`answers`: the text of a prompt -> that of its answer. `wrong(record, number)` may change the n-th reply, or
    return (status, record) of an error."""

    def __init__(self, tokenizer, answers):
        self.tokenizer, self.answers, self.wrong = tokenizer, answers, None
        self.asked, self.told = [], {"/version": {"version": "0.30"}, "/v1/models": {"data": [{"id": "m"}]}}
        self.told["/get_server_info"] = dict(SGLANG)
        self.flushed, self.broken_off, self._lock = 0, False, threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
                status, record = stub.post(self.path, body)
                if body.get("stream") and status == 200 and isinstance(record, dict):
                    record = stub.streamed(record)
                self.send(record, status)

            def do_GET(self):
                self.send(stub.told.get(self.path, {}))

            def send(self, record, status=200):
                body = record if isinstance(record, bytes) else json.dumps(record).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def post(self, path, body):
        if path == "/flush_cache":
            self.flushed += 1
            return 200, {}
        with self._lock:
            self.asked.append(body)
            number = len(self.asked)
        record = self.reply(path, body)
        if self.wrong:
            record = self.wrong(record, number)
        return record if isinstance(record, tuple) else (200, record)

    def streamed(self, record):
        """The same completion as events; `broken_off` leaves the last ones out."""
        [choice] = record["choices"]
        parts = [{"text": choice["text"][:2]}, {"text": choice["text"][2:], "finish_reason": choice["finish_reason"]}]
        events = [{"choices": [part]} for part in parts] + [{"choices": [], "usage": record["usage"]}]
        lines = [f"data: {json.dumps(event)}\n\n" for event in (events[:1] if self.broken_off else events)]
        return "".join([*lines, "data: [DONE]\n\n"]).encode()

    def reply(self, path, body):
        """As the interface that such a body belongs to defines it."""
        given = body.get("input_ids") or body.get("prompt")
        ids = self.tokenizer.encode(given) if isinstance(given, str) else given
        text = self.answers[self.tokenizer.decode(ids)]
        answer = [*self.tokenizer.encode(text), self.tokenizer.eos_token_id]
        if "input_ids" in body:
            told = {"finish_reason": {"type": "stop", "matched": 1}, "prompt_tokens": len(ids), "e2e_latency": 0.01}
            return {"text": text, "output_ids": answer, "meta_info": {**told, "completion_tokens": len(answer)}}
        if path == "/generate":
            return {"text": text, "token_ids": answer, "nfe": len(answer) // 2, "finish_reason": "stop"}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(answer)}
        return {"choices": [{"index": 0, "text": text, "finish_reason": "stop"}], "usage": usage}
