import { Button, Modal, NumberInput, Stack, Text } from "@mantine/core";
import { IconReportAnalytics } from "@tabler/icons-react";
import { useState } from "react";
import { useLocation } from "wouter";

import { useText } from "../../shared/text/language";
import { Failure } from "../../shared/ui/states";
import type { JobView } from "../api/schema";
import { useChange, useClient } from "../api/use";
import { evaluationOf, NOTHING_ASKED, type Asked } from "../model/asked";
import { AskedFields } from "./asked";

function Form({ job }: { job: JobView }) {
  const { say } = useText();
  const client = useClient();
  const [, go] = useLocation();
  const newest = job.rounds.at(-1)?.round ?? job.round;
  const [round, setRound] = useState(newest);
  const [asked, setAsked] = useState<Asked>(NOTHING_ASKED);
  const start = useChange(async () => {
    const id = job.rounds.find((one) => one.round === round)?.model ?? `${job.id}.${round}`;
    return client.startJob(evaluationOf(job, await client.model(id), asked));
  });
  return (
    <form onSubmit={(event) => { event.preventDefault(); start.mutate(undefined, { onSuccess: (made) => go(`/experiments/${encodeURIComponent(made.id)}`) }); }}>
      <Stack>
        <Text size="sm">{say("evaluate.consequence")}</Text>
        <NumberInput label={say("evaluate.round")} min={0} max={newest} allowDecimal={false} value={round} onChange={(value) => setRound(Number(value) || 0)} />
        <AskedFields asked={asked} edit={(part) => setAsked((old) => ({ ...old, ...part }))} sites={Object.keys(job.sites).sort()} />
        {start.isError && <Failure error={start.error} />}
        <Button type="submit" loading={start.isPending}>{say("evaluate.start")}</Button>
      </Stack>
    </form>
  );
}

/** Ask the sites what a model of this job is worth on their hold-outs: a job of its own. */
export function AskEvaluation({ job }: { job: JobView }) {
  const { say } = useText();
  const [open, setOpen] = useState(false);
  return (
    <>
      <Button variant="default" leftSection={<IconReportAnalytics size={17} aria-hidden />} onClick={() => setOpen(true)}>{say("evaluate.ask")}</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={say("evaluate.ask")} size="lg" centered closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <Form job={job} />
      </Modal>
    </>
  );
}
