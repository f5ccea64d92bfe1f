"""Load tests of a running server, over HTTP and gRPC alone; `README.md` is the way in.

    cli ─▶ driving ─▶ {serving, preparing ─▶ lora_folders}     what happens around a run
           driving ─▶ calibration ─▶ pace_server (a process)
           driving ─▶ locustfile (Locust's process) ─▶ users ─▶ {http_client, grpc_client}
                                                    ─▶ {actions, watching}
    all ─▶ {scenarios, plans, target, records}                 what is asked, of whom, what came
    report ─▶ {judging, charts} ─▶ measures ─▶ records

Only what Locust's process loads knows gevent. Nothing here imports loragate but the gRPC stubs.
"""
