"""Removes one guard at a time and shows the test that fails without it: `make mutants`.

Each mutant is a copy of the tree with one text replaced, and the tests that should fail then. Words after the command
choose guards: `make mutants ARGS="the lease"`. Ends with 1 if no test fails for one of them.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT_S = 300


@dataclass(frozen=True)
class Mutant:
    guard: str
    file: str
    text: str
    instead: str
    tests: str  # pytest's arguments, with -k behind a colon


MUTANTS = (
    Mutant(
        "the fence: a run ends once",
        "schema.sql",
        "WHEN (OLD.status <> 'running' AND NEW.status <> OLD.status)",
        "WHEN (false)",
        "test_store.py test_faults.py:slept or stopped_for_long",
    ),
    Mutant(
        "the claim: one run in one place of a thread",
        "schema.sql",
        "UNIQUE (owner, thread_id, seq)",
        "CHECK (seq > 0)",
        "test_store.py test_faults.py:second_run_in_one_place or never_fork",
    ),
    Mutant(
        "the lease: a thread is another process's while that is alive",
        "storage/reads.py",
        "AND in_progress(r)) AS running",
        "AND false) AS running",
        "test_faults.py:one_run_between_two",
    ),
    Mutant(
        "the lease's end: a dead process's thread is free",
        "storage/reads.py",
        "AND in_progress(r)) AS running",
        "AND status = 'running') AS running",
        "test_faults.py:kill_9_in_the_middle",
    ),
    Mutant(
        "ON CONFLICT of a run's start",
        "storage/statements.py",
        "make_interval(secs => $11))\nON CONFLICT (run_id) DO NOTHING",
        "make_interval(secs => $11))",
        "test_store.py:answer_was_lost or put_twice",
    ),
    Mutant(
        "ON CONFLICT of an item",
        "storage/statements.py",
        "$12, to_timestamp($13::float8))\nON CONFLICT (owner, thread_id, seq, item) DO NOTHING",
        "$12, to_timestamp($13::float8))",
        "test_store.py:answer_was_lost or put_twice",
    ),
    Mutant(
        "a DSN that can be read in two ways is refused",
        "settings.py",
        "if found is None or not text",
        "if not text",
        "test_address.py:no_part or two_ways",
    ),
    Mutant(
        "a DSN that can be read in two ways is not shown",
        "storage/address.py",
        "if not DSN_FORM.fullmatch(dsn):",
        "if False:",
        "test_address.py:no_part",
    ),
    Mutant(
        "the parser's text is not shown",
        "storage/address.py",
        "if is_safe else []",
        "",
        "test_address.py:shows_no_password",
    ),
    Mutant(
        "the embedded server knows who connects",
        "storage/server_user.py",
        '"peer map=draftstream" if is_known',
        '"trust" if is_known',
        "test_embedded.py:reaches_the_socket",
    ),
    Mutant(
        "data of an earlier version is taken over",
        "storage/embedded.py",
        "if not is_shared(self._account):",
        "if True:",
        "test_embedded.py:earlier_version",
    ),
    Mutant(
        "the passage through a folder ends with the server",
        "storage/embedded.py",
        "                end_passage(folder, self._account.group)",
        "                pass",
        "test_embedded.py:opens_no_folder",
    ),
    Mutant(
        "what is set aside is for its user alone",
        "storage/journal.py",
        'open(aside, "wb", opener=opener)',
        'open(aside, "wb")',
        "test_journal.py:user_alone",
    ),
    Mutant(
        "a folder that an earlier version left open is closed",
        "storage/private.py",
        "        folder.chmod(stat.S_IMODE(mode) & ~OTHERS)",
        "        pass",
        "test_journal.py:left_open",
    ),
    Mutant(
        "the finish_reason: a reply that just stops is no document",
        "drafting/wire.py",
        "if self._reason is None:",
        "if False:",
        "test_model.py test_service.py:finish or trunc or breaks_off or clean",
    ),
    Mutant(
        "the wait for the commit",
        "runs/turn.py",
        "return End(outcome.reason, saving.committed,",
        "return End(outcome.reason, True,",
        "test_runs.py test_faults.py:saved or kill_9_at_random or admitted",
    ),
    Mutant(
        "the reserved place of a run's end",
        "store.py",
        "self._writer.size - self._writer.waiting - len(self._open_runs)",
        "self._writer.size - self._writer.waiting",
        "test_store.py test_faults.py:full_queue or admitted",
    ),
    Mutant(
        "giving a frozen connection up",
        "storage/closing.py",
        "            connection.terminate()",
        "            pass",
        "test_store.py:given_up_leaves",
    ),
    Mutant(
        "a statement that is given up is cancelled at the server",
        "storage/closing.py",
        "                work.cancel()\n",
        "",
        "test_giving_up.py:ends_at_the_server and our_own",
    ),
    Mutant(
        "the server's limit for a read",
        "storage/pool.py",
        "NOT BETWEEN '1 ms' AND",
        "BETWEEN '1 ms' AND",
        "test_giving_up.py:smaller_limit or usable",
    ),
    Mutant(
        "the sessions of a pooler get no limit",
        "storage/pool.py",
        "WHERE pg_backend_pid() = {}",
        "WHERE {} > 0",
        "test_giving_up.py:pooler",
    ),
    Mutant(
        "a COMMIT with a warning acknowledges nothing",
        "storage/commits.py",
        "            warnings.append(message)",
        "            pass",
        "test_acknowledgements.py:was_cancelled",
    ),
    Mutant(
        "a COMMIT that ends in a rollback is none",
        "storage/commits.py",
        'if done != "COMMIT":',
        "if False:",
        "test_acknowledgements.py:ends_in_a_rollback",
    ),
    Mutant(
        "the real write of a batch that is sent again",
        "storage/commits.py",
        "        if again:",
        "        if False:",
        "test_acknowledgements.py:sent_again",
    ),
    Mutant(
        "the warnings of a COMMIT, whatever the role hides",
        "storage/commits.py",
        "SET LOCAL client_min_messages = warning;\n",
        "",
        "test_acknowledgements.py:whatever_the_database_sets",
    ),
    Mutant(
        "what a COMMIT of the writer means, whatever the role has set",
        "storage/commits.py",
        "ELSE 'on' END",
        "ELSE current_setting('synchronous_commit') END",
        "test_acknowledgements.py:whatever_the_database_sets",
    ),
    Mutant(
        "a commit that is given up is cancelled at the server",
        "storage/closing.py",
        "                work.cancel()\n",
        "",
        "test_acknowledgements.py:no_waiting_process",
    ),
    Mutant(
        "an end that is read from the database is confirmed first",
        "store.py",
        'and row["is_replicated"] and not await',
        "and False and not await",
        "test_acknowledgements.py:stored_run",
    ),
    Mutant(
        "a fork without a confirmed COMMIT is not acknowledged",
        "storage/reader.py",
        'async with transaction(connection, FORK_BUDGET_S, "ISOLATION LEVEL REPEATABLE READ"):',
        'async with connection.transaction(isolation="repeatable_read"):',
        "test_acknowledgements.py:fork",
    ),
    Mutant(
        "the journal stays until a standby has its turns",
        "storage/recovery.py",
        "            if found:",
        "            if False:",
        "test_acknowledgements.py:journal_stays",
    ),
    Mutant(
        "a change that may be done is not said to be given up",
        "storage/writer.py",
        " and not in_doubt:",
        ":",
        "test_acknowledgements.py:neither_acknowledged",
    ),
    Mutant(
        "the time of a run's start is the database's",
        "runs/registry.py",
        "started_at=self._store.now()",
        "started_at=time.time()",
        "test_clock.py:stores_right_times",
    ),
    Mutant(
        "the time of a run's end is the database's",
        "runs/turn.py",
        "failure, self._store.now())",
        "failure, time.time())",
        "test_clock.py:stores_right_times",
    ),
    Mutant(
        "threads expire by the database's clock",
        "threads/retention.py",
        "datetime.fromtimestamp(self.store.now(), UTC) - ttl",
        "datetime.now(UTC) - ttl",
        "test_clock.py:deletes_no_thread",
    ),
    Mutant(
        "the slots of a limit are those of all replicas",
        "access/per_owner.py",
        "        clock=store.now,\n",
        "",
        "test_clock.py:share_a_limit",
    ),
    Mutant(
        "the database's clock is followed",
        "storage/clock.py",
        "min(max(self._offset, least), most)",
        "self._offset",
        "test_clock.py:followed or estimate",
    ),
    Mutant(
        "the order of a thread's own writes in a batch",
        "storage/units.py",
        "reached.get(unit.thread, 0)",
        "0",
        "test_store.py:of_one_thread",
    ),
    Mutant(
        "the journal's write",
        "storage/journal.py",
        "await asyncio.to_thread(self._write, framed)",
        "await asyncio.sleep(0)",
        "test_journal.py:kill_9",
    ),
    Mutant(
        "the branch of a journaled turn whose thread has moved on",
        "storage/recovery.py",
        "        if moved_on:",
        "        if False:",
        "test_journal.py:moved_on or interrupted",
    ),
    Mutant(
        "the head of a thread that a journaled turn comes back to",
        "storage/recovery.py",
        "leads=not moved_on",
        "leads=True",
        "test_branches.py test_journal.py:journal or moved_on",
    ),
    Mutant(
        "the memory of its own of a journaled branch",
        "storage/recovery.py",
        "on_their_own(turn.checkpoints, branch_id) if moved_on else turn.checkpoints",
        "turn.checkpoints",
        "test_branches.py:journal",
    ),
    Mutant(
        "the branch: a run starts from the state of the run that it goes on from",
        "storage/reader.py",
        'branches = state != row["stored_last"]',
        "branches = False",
        "test_branches.py:state_it_names or own_documents",
    ),
    Mutant(
        "the state at hand is the one that the database has",
        "threads/checkpointer.py",
        'state is None or state.checkpoint["id"] != checkpoint_id',
        "state is None",
        "test_checkpointer.py:at_hand",
    ),
    Mutant(
        "the fence of late pieces",
        "storage/statements.py",
        "FROM said JOIN running USING (run_id)",
        "FROM said",
        "test_threads.py test_faults.py:late or slept or piece or gone",
    ),
    Mutant(
        "a run goes on from all that the lost run before it said",
        "schema.sql",
        "WHERE run_id = its_id) > known THEN",
        "WHERE run_id = its_id) > known AND false THEN",
        "test_store.py:said_more",
    ),
    Mutant(
        "a schema that is newer than the service is refused",
        "storage/database.py",
        "if version > VERSION:",
        "if False:",
        "test_schema.py:newer",
    ),
    Mutant(
        "a migration that waits for a table lets others write to it",
        "storage/database.py",
        "SET LOCAL lock_timeout = '{LOCK_TIMEOUT_S}s'; ",
        "",
        "test_schema.py:blocks_no_writer",
    ),
    Mutant(
        "one process migrates at a time",
        "storage/database.py",
        'if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", MIGRATION_LOCK):',
        'if not await connection.fetchval("SELECT pg_try_advisory_xact_lock($1) OR true", MIGRATION_LOCK):',
        "test_schema.py:another_one_that_migrates",
    ),
    Mutant(
        "the Retry-After's bound",
        "drafting/openai_model.py",
        "asked > RETRY_AFTER_S",
        "asked > 3600",
        "test_model.py:waited_for",
    ),
    Mutant(
        "cutting a reader off that takes nothing",
        "runs/run.py",
        "            self._on_stuck()\n",
        "            pass\n",
        "test_runs.py:takes_nothing",
    ),
    Mutant(
        "a run in memory is its owner's alone",
        "runs/registry.py",
        "return run if run is not None and run.owner == owner else None",
        "return run",
        "test_access.py:another",
    ),
    Mutant(
        "a stored run is its owner's alone",
        "storage/reads.py",
        'FROM runs r WHERE owner = $1 AND """',
        'FROM runs r WHERE $1 <> \'\' AND """',
        "test_access.py:another",
    ),
    Mutant(
        "of two threads of one name, the caller's is renamed",
        "storage/statements.py",
        'now()) WHERE owner = $1 AND thread_id = $2",',
        "now()) WHERE $1 <> '' AND thread_id = $2\",",
        "test_access.py:two_owners",
    ),
    Mutant(
        "a route takes its scope",
        "web/routing.py",
        "        caller.need(route.who)\n",
        "        pass\n",
        "test_access.py:takes_its_scope",
    ),
    Mutant(
        "a request counts before anything else is decided about it",
        "web/routing.py",
        "limits.count_request(caller.owner, route.weight_of(request))",
        "limits.count_request(caller.owner, 0)",
        "test_metering.py:counts_once",
    ),
    Mutant(
        "a search weighs more than a list",
        "web/routing.py",
        "        if not self.heavier:\n",
        "        if True:\n",
        "test_metering.py:counts_once",
    ),
    Mutant(
        "an EventSource that comes back too often is told when",
        "web/routing.py",
        "            if response.started or not _comes_back(request, route) or not is_over_soon(refused):\n",
        "            if True:\n",
        "test_metering.py:comes_back_too_often",
    ),
    Mutant(
        "streams at once of an owner",
        "web/routing.py",
        "with streams.taken(caller.owner) if route.reader else nullcontext():",
        "with nullcontext():",
        "test_metering.py:gives_its_place_back",
    ),
    Mutant(
        "a place comes back",
        "access/places.py",
        "        self._taken[owner] -= 1\n",
        "        pass\n",
        "test_metering.py:places_come_back",
    ),
    Mutant(
        "the bytes that an owner's forks copy in an hour",
        "access/forks.py",
        "        self._budget.check(owner)\n",
        "",
        "test_metering.py:without_any_setting",
    ),
    Mutant(
        "the stream tokens of an owner in a minute",
        "web/chats.py",
        "    call.service.per_owner.stream_tokens.take(call.owner)\n",
        "",
        "test_metering.py:stream_tokens",
    ),
    Mutant(
        "one fork at a time of an owner",
        "access/forks.py",
        "        with self._places.taken(owner):\n",
        "        if True:\n",
        "test_metering.py:one_fork_at_a_time",
    ),
    Mutant(
        "changes of an owner in the queue",
        "store.py",
        "        self._changes.check(owner)\n",
        "",
        "test_metering.py:leave_places",
    ),
    Mutant(
        "bytes that an owner has stored, before a run",
        "runs/registry.py",
        "        await self._check_stored_bytes(run.owner)\n",
        "",
        "test_stored_bytes.py:who_is_full",
    ),
    Mutant(
        "bytes that an owner has stored, before a fork",
        "web/branches.py",
        "    await call.service.per_owner.stored_bytes.check(call.owner)\n",
        "",
        "test_stored_bytes.py:counts_in_full",
    ),
    Mutant(
        "a full owner who deletes may store at once",
        "web/threads.py",
        "    await call.service.retention.delete(call.owner, call.thread_id)\n    call.service.per_owner.stored_bytes.forget(call.owner)\n",
        "    await call.service.retention.delete(call.owner, call.thread_id)\n",
        "test_stored_bytes.py:who_is_full",
    ),
    Mutant(
        "a request with a wrong field is refused",
        "web/fields.py",
        "if kind is None and self._errors:",
        "if False:",
        "test_fields.py:wrong",
    ),
    Mutant(
        "one use of a stream token",
        "access/callers.py",
        "WHERE hash = $1 AND redeemed_at IS NULL AND",
        "WHERE hash = $1 AND",
        "test_access.py:redemptions or starts_one_stream",
    ),
    Mutant(
        "a client that takes too little is waited for",
        "web/asgi.py",
        " or self._transport.get_write_buffer_size() > UNSENT_BYTES",
        "",
        "test_asgi.py:too_little",
    ),
    Mutant(
        "a reader's place moves on with what was written past its iteration",
        "runs/run.py",
        "                self._next = following\n",
        "",
        "test_runs.py:without_waking",
    ),
    Mutant(
        "the model's silence: a token puts its end off",
        "drafting/watchdog.py",
        "            self._deadline = now + self._idle_s\n",
        "            pass\n",
        "test_watchdog.py test_agent.py:beat or longer_than_its_first",
    ),
    Mutant(
        "a stop that a token does not put off",
        "drafting/watchdog.py",
        "            self._block.reschedule(self._loop.time())\n",
        "            pass\n",
        "test_watchdog.py:stop",
    ),
    Mutant(
        "the tokens of a run that was cancelled",
        "agent.py",
        "progress.estimated_tokens += count_tokens_approximately([*asked, message])",
        "pass",
        "test_limits.py:tells_nothing",
    ),
    Mutant(
        "the counts that a full queue has no place for",
        "access/shared_limits.py",
        "                continue\n",
        "                return\n",
        "test_limits.py:full_queue",
    ),
    Mutant(
        "a run goes on when a reader's connection takes nothing any more",
        "web/asgi.py",
        "            return False\n        self.abort()",
        "            raise\n        self.abort()",
        "test_service.py:second_request_in_line",
    ),
    Mutant(
        "a reader whose connection raises fails no run",
        "runs/run.py",
        "                self._write_now = _by_the_iteration\n",
        "                raise\n",
        "test_runs.py:connection_raises",
    ),
    Mutant(
        "the fast path of a token: in from the model",
        "drafting/tap.py",
        'if "content-encoding" in response.headers:',
        "if True:",
        "test_costs.py:one_call",
    ),
    Mutant(
        "the fast path of a token: out to the reader",
        "runs/run.py",
        "written = self._write_now(frames)",
        "written = False",
        "test_costs.py:one_call",
    ),
    Mutant(
        "the batch in hand of a writer whose loop failed",
        "storage/writer.py",
        "        except Exception:\n            self._start_failing()\n",
        "        except Exception:\n            self._in_hand = []\n",
        "test_supervision.py:in_hand",
    ),
    Mutant(
        "the turns of a dead writer are counted",
        "store.py",
        "            if store.unsaved:\n                raise UnsavedTurns(store.unsaved)\n",
        "            pass\n",
        "test_supervision.py:dead_writer",
    ),
    Mutant(
        "a loop that failed is started again",
        "telemetry/supervision.py",
        "if asked_to_end or last_start:",
        "if True:",
        "test_supervision.py:started_again",
    ),
    Mutant(
        "the end of a process whose writer keeps failing",
        "telemetry/supervision.py",
        "                self._give_up()\n",
        "                pass\n",
        "test_supervision.py:keeps_failing",
    ),
    Mutant(
        "readiness while a loop is down",
        "web/readiness.py",
        '            *(f"{part}_down" for part in self._supervisor.down),\n',
        "",
        "test_supervision.py:started_again",
    ),
    Mutant(
        "readiness while writes fail",
        "web/readiness.py",
        "self._store.writes_failing_s > FAILED_WRITES_S",
        "False",
        "test_supervision.py:read_only or sent_again",
    ),
    Mutant(
        "the embedded database's second start",
        "storage/embedded.py",
        "                await asyncio.to_thread(self._start_again)\n",
        "",
        "test_supervision.py:embedded_database",
    ),
    Mutant(
        "SIGHUP drains",
        "web/server.py",
        "            handled.append(signal.SIGHUP)\n",
        "            pass\n",
        "test_service.py:signal_lets",
    ),
    Mutant(
        "a second SIGHUP",
        "web/server.py",
        "signal.SIG_IGN if number == signal.SIGHUP else handler",
        "handler",
        "test_service.py:second_sighup",
    ),
    Mutant(
        "the shutdown behind readers that are cut",
        "web/server.py",
        "                _cut_readers(server)\n",
        "                server.force_exit = True\n",
        "test_service.py:ctrl_c_while",
    ),
    Mutant(
        "the embedded database of a service that has left",
        "storage/embedded.py",
        "if self._users is None or self._users.closed:",
        "if False:",
        "test_embedded.py:after_the_service_has_left",
    ),
    Mutant(
        "the answer to a start that an error of ours fails",
        "asgi_app.py",
        '        await send({"type": "lifespan.startup.failed", "message": cannot_start(error)})\n',
        "        raise\n",
        "test_start.py:error_of_ours_in_a_start",
    ),
    Mutant(
        "what comes at once is written to its last piece",
        "runs/run.py",
        "or following == self._run.log.place:",
        "or True:",
        "test_runs.py:last_piece",
    ),
    Mutant(
        "the host: an open service answers at no name of others",
        "web/routing.py",
        "        if is_open:\n            boundary.check_host",
        "        if False:\n            boundary.check_host",
        "test_boundary.py:no_path_and_to_no_method",
    ),
    Mutant(
        "the host of a request line with a whole URL",
        "web/boundary.py",
        "    if request.target_host is not None:",
        "    if False:",
        "test_boundary.py:whole_url",
    ),
    Mutant(
        "the form of a host: one way to read it",
        "web/boundary.py",
        "HOST.fullmatch(host.lower())",
        "HOST.match(host.lower())",
        "test_boundary.py:every_other_host",
    ),
    Mutant(
        "the sender: a foreign page changes nothing",
        "web/routing.py",
        "        if request.method not in boundary.SAFE_METHODS:",
        "        if False:",
        "test_boundary.py:every_route_that_changes",
    ),
    Mutant(
        "the sender: both signals must agree",
        "web/asgi.py",
        "if from_own_site and (origin is None",
        "if (origin is None and from_own_site) or (origin is not None",
        "test_boundary.py:foreign_page",
    ),
    Mutant(
        "the sender: another port is another site",
        "web/asgi.py",
        'OWN_SITES = ("same-origin", "none")',
        'OWN_SITES = ("same-origin", "none", "same-site")',
        "test_boundary.py:foreign_page",
    ),
    Mutant(
        "the sender: no origin is allowed that is not told",
        "web/cors.py",
        'return origin is not None and ("*" in origins',
        'return ("*" in origins',
        "test_boundary.py:starts_no_run",
    ),
    Mutant(
        "a GET starts no run for a link or an image",
        "web/routing.py",
        "        if route.starts:",
        "        if False:",
        "test_service.py:refus",
    ),
    Mutant(
        "the Accept of an EventSource, where a browser tells nothing else",
        "web/boundary.py",
        "or (_may_be_a_browser(headers) and EVENT_STREAM not in _accepted(headers)):",
        "or False:",
        "test_boundary.py:starts_no_run",
    ),
    Mutant(
        "the token of the metrics",
        "web/status.py",
        'return scheme.lower() == "bearer" and hmac',
        "return True or hmac",
        "test_telemetry.py:metrics_token",
    ),
    Mutant(
        "nginx: every name but the site's is closed",
        "deploy/nginx.conf",
        "    return 444;",
        "    location / { proxy_pass http://draftstream; }",
        "test_nginx.py:closed_without",
    ),
    Mutant(
        "nginx: the service gets the name that was checked",
        "deploy/nginx.conf",
        "Host $host$draftstream_port;",
        "Host $http_host;",
        "test_nginx.py:that_was_checked",
    ),
    Mutant(
        "nginx: an export lies in no file",
        "deploy/nginx.conf",
        "proxy_max_temp_file_size 0;",
        "proxy_max_temp_file_size 1g;",
        "test_nginx.py:slow_reader",
    ),
    Mutant(
        "the Referer, where a foreign script may send any Accept",
        "web/boundary.py",
        "    return always_tells or not is_open",
        "    return True",
        "test_boundary.py:referer",
    ),
    Mutant(
        "LangSmith's tracer is off",
        "telemetry/tracers.py",
        "langsmith.configure(enabled=False)\n        if",
        "if",
        "test_outbound.py:stay_off",
    ),
    Mutant(
        "the tracers' variables leave the environment",
        "telemetry/tracers.py",
        "(value := env.pop(name))",
        "(value := env.get(name, ''))",
        "test_outbound.py:variables_are_taken or whatever_the_environment",
    ),
    Mutant(
        "the traces go to the address that the log names",
        "telemetry/tracers.py",
        "session.max_redirects = 0",
        "pass",
        "test_outbound.py:collector_that_redirects",
    ),
    Mutant(
        "the settings alone name the model's address",
        "drafting/openai_model.py",
        "_split_query(base_url or DEFAULT_BASE_URL)",
        "_split_query(base_url) if base_url else (None, None)",
        "test_outbound.py:names_its_own_address",
    ),
    Mutant(
        "the model's client follows no redirect",
        "drafting/openai_model.py",
        "follow_redirects=False",
        "follow_redirects=True",
        "test_outbound.py:not_followed",
    ),
    Mutant(
        "an exception of a thread goes through the log",
        "telemetry/logs.py",
        "threading.excepthook = _of_thread",
        "pass",
        "test_logs.py:nobody_caught",
    ),
    Mutant(
        "the arguments of a callback stay out of the log",
        "telemetry/logs.py",
        "return found[0] if found is not None else template",
        "return template",
        "test_logs.py:nobody_caught",
    ),
    Mutant(
        "a short secret takes no words out of the log",
        "telemetry/logs.py",
        "SHORTEST_SECRET = 8",
        "SHORTEST_SECRET = 1",
        "test_logs.py:short_secret",
    ),
    Mutant(
        "descriptors: no run beyond those that are left",
        "web/admission.py",
        "            raise Short\n        self._promise",
        "            pass\n        self._promise",
        "test_admission.py:each_client or never_reach",
    ),
    Mutant(
        "descriptors: no connection beyond those that are left",
        "web/listener.py",
        "if self._doorkeeper.connections_left <= 0:",
        "if False:",
        "test_admission.py:each_client or send_nothing",
    ),
    Mutant(
        "descriptors: idle connections close first",
        "web/listener.py",
        "            connection.shutdown()",
        "            pass",
        "test_admission.py:idle or send_nothing",
    ),
    Mutant(
        "descriptors: a run's descriptor for its model is kept",
        "web/admission.py",
        " - max(0, self._runs() - self._model_connections)",
        "",
        "test_admission.py:never_reach",
    ),
    Mutant(
        "descriptors: the soft limit is raised",
        "telemetry/resources.py",
        "    if soft < wanted:",
        "    if False:",
        "test_admission.py:soft_limit",
    ),
    Mutant(
        "descriptors: the model is not to blame for ours",
        "drafting/openai_model.py",
        "error.errno in OWN_FAULTS",
        "False",
        "test_model.py:lack",
    ),
    Mutant(
        "a file's name: normalised before it is cleaned",
        "web/file_names.py",
        'map(_in_a_name, unicodedata.normalize("NFKC", title))',
        "map(_in_a_name, title)",
        "test_file_names.py:middle or foreign or nothing_else",
    ),
    Mutant(
        "a file's name: no device of Windows",
        "web/file_names.py",
        "if DEVICE.match(name) else name",
        "if False else name",
        "test_file_names.py:nothing_else",
    ),
    Mutant(
        "a file's name in ASCII: a list of what may stand there",
        "web/file_names.py",
        'NOT_PLAIN.sub(" ", plain)',
        "plain",
        "test_file_names.py",
    ),
    Mutant(
        "the bound of a table's cells",
        "documents/commonmark.py",
        "if filled_up > characters:",
        "if False:",
        "test_sizes.py",
    ),
    Mutant(
        "the text below the deepest quotation",
        "documents/commonmark.py",
        "return state.level < DEEPEST and rule(",
        "return rule(",
        "test_sizes.py",
    ),
    Mutant(
        "the count of a file's parts",
        "documents/markdown.py",
        "        if self.parts < 0:",
        "        if False:",
        "test_sizes.py test_export.py:parts or limits",
    ),
    Mutant(
        "the count of the parser's tokens",
        "documents/markdown.py",
        "        if self._tokens < 0:",
        "        if False:",
        "test_sizes.py:parser",
    ),
    Mutant(
        "the effort of equal elements in an alignment",
        "documents/alignment.py",
        "effort.took(equal // EQUALS_A_STEP)",
        "effort.took(0)",
        "test_redline.py:effort",
    ),
    Mutant(
        "the end of a file whose client left",
        "web/file_workers.py",
        "leaving.add_done_callback(lambda _: self._end(scope))",
        "pass",
        "test_file_workers.py:who_leaves",
    ),
    Mutant(
        "the end of all files at a shutdown",
        "web/file_workers.py",
        "        for scope in list(self._open):",
        "        for scope in ():",
        "test_file_workers.py:shutdown",
    ),
    Mutant(
        "the death of a process whose file is not wanted",
        "web/file_workers.py",
        "            self.process.kill()",
        "            pass",
        "test_file_workers.py:who_leaves",
    ),
    Mutant(
        "the empty environment of a process that makes files",
        "web/file_workers.py",
        "env={name: os.environ[name] for name in INHERITED if name in os.environ}",
        "env=dict(os.environ)",
        "test_file_workers.py:environment",
    ),
    Mutant(
        "the end of a process whose service was killed",
        "documents/worker.py",
        "            os._exit(0)",
        "            return",
        "test_file_workers.py:outlive",
    ),
    Mutant(
        "the turns of the owners who wait",
        "web/places.py",
        "                    self._lines[owner] = line  # behind the others",
        "                    self._lines = {owner: line, **self._lines}",
        "test_file_workers.py:turns",
    ),
    Mutant(
        "the places of one owner",
        "web/places.py",
        "if not self._free or self._taken[owner] >= self._most(owner):",
        "if not self._free:",
        "test_file_workers.py:no_more",
    ),
    Mutant(
        "the log: a bound in bytes over all runs",
        "runs/registry.py",
        "if self.full or self.log_full:",
        "if self.full:",
        "test_run_log.py:refused_until or oldest",
    ),
    Mutant(
        "the log: a run that is not stored stays in memory",
        "runs/lingering.py",
        "if run.stored and not run.readers:",
        "if True:",
        "test_run_log.py:not_stored",
    ),
    Mutant(
        "the log: old frames are merged",
        "runs/log.py",
        "        if len(item.pieces) - item.merged >= MERGE_AT:",
        "        if False:",
        "test_run_log.py:little_memory",
    ),
    Mutant(
        "the log: a reader inside of a merged frame gets its rest",
        "runs/log.py",
        "        if index and place > positions[index - 1]:",
        "        if False:",
        "test_run_log.py:lose_no_text",
    ),
    Mutant(
        "the log: a run has a bound of its own",
        "runs/run.py",
        "        if log.position > MOST_CHARS:",
        "        if False:",
        "test_run_log.py:without_end",
    ),
    Mutant(
        "memory: work is refused before the limit",
        "web/admission.py",
        "                raise Short\n        if self._memory.limits:",
        "                pass\n        if self._memory.limits:",
        "test_admission.py:memory or bodies",
    ),
    Mutant(
        "memory: work that has just begun counts",
        "web/admission.py",
        " - sum(promised for _, promised in self._promised)",
        "",
        "test_admission.py:begins_together or bodies",
    ),
    Mutant(
        "memory: the cache of files does not count as used",
        "telemetry/resources.py",
        '        cached = int(rest.split(b"\\n", 1)[0]) if found else 0',
        "        cached = 0",
        "test_admission.py:control_groups",
    ),
)


def notices(mutant: Mutant, tree: Path) -> str | None:
    """The first test that turns red, or None."""
    path = tree / mutant.file
    whole = path.read_text("utf-8")
    if whole.count(mutant.text) != 1:
        sys.exit(f"{mutant.file} does not hold once: {mutant.text!r}")
    path.write_text(whole.replace(mutant.text, mutant.instead), "utf-8")
    files, _, names = mutant.tests.partition(":")
    command = [sys.executable, "-m", "pytest", "-x", "-q", *(f"tests/{name}" for name in files.split()), "-k", names]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "a test that never ended"
    finally:
        path.write_text(whole, "utf-8")
    if done.returncode == 0:
        return None
    red = [line for line in done.stdout.splitlines() if line.startswith(("FAILED tests", "ERROR tests"))]
    if not red:
        sys.exit(f"no test ran for {mutant.guard}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return red[0].split(" - ")[0].partition("::")[2]


def main() -> None:
    words = " ".join(sys.argv[1:])
    chosen = [mutant for mutant in MUTANTS if words in mutant.guard]
    if not chosen:
        sys.exit(f"no guard is called {words!r}")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", ".data", "__pycache__", ".*_cache"))
        survivors = 0
        for mutant in chosen:
            red = notices(mutant, tree)
            survivors += red is None
            print(
                f"{'SURVIVED' if red is None else 'noticed':9} {mutant.guard}: {red or 'no test turned red'}",
                flush=True,
            )
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
