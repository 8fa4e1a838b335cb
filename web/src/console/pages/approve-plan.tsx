import { Button, Group, Modal, Stack, Text, TextInput, Textarea } from "@mantine/core";
import { IconCheck } from "@tabler/icons-react";
import { useState, type SyntheticEvent } from "react";

import { day } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Facts, Section } from "../../shared/ui/page";
import { Failure } from "../../shared/ui/states";
import type { PlanView } from "../api/schema";
import { useChange, useClient } from "../api/use";
import { rangesOf } from "../ranges";

/** What the first of two reviewers has signed: who gives no terms agrees to it. */
function SignedTerms({ plan }: { plan: PlanView }) {
  const { say, language } = useText();
  const { until } = plan.summary;
  const ranges = plan.arguments.filter((argument) => argument.approved !== "").map((argument) => `${argument.name}: ${argument.approved}`);
  return (
    <Section title={say("plan.signed", { names: plan.reviewers.join(", ") })} hint={say("plan.signed.hint")}>
      <Facts items={[
        [say("field.reason"), plan.summary.reason],
        [say("field.until"), until ? day(until, language) : say("plan.signed.no_end")],
        [say("plan.ranges"), ranges.join(", ") || say("plan.signed.site_ranges")],
        [say("plan.only_studies"), plan.studies.join(", ")],
      ]} />
    </Section>
  );
}

/** Approve with an end date and the ranges in which arguments may vary without asking again. */
export function Approve({ plan }: { plan: PlanView }) {
  const { say } = useText();
  const client = useClient();
  const [open, setOpen] = useState(false);
  const [seen, setSeen] = useState(""); // as it was when the person began to decide
  const [reason, setReason] = useState("");
  const [until, setUntil] = useState("");
  const [ranges, setRanges] = useState<Readonly<Record<string, string>>>({});
  const [wrong, setWrong] = useState("");
  const signed = plan.summary.state !== "approved" && plan.reviewers.length > 0;
  const asked = signed ? [] : plan.arguments; // the second agrees to the first one's terms
  const approve = useChange((given: ReturnType<typeof rangesOf>["ranges"]) =>
    client.approvePlan(plan.summary.digest, { reason, until, arguments: given, seen }));
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    const read = rangesOf(ranges);
    setWrong(read.wrong);
    if (read.wrong === "") approve.mutate(read.ranges, { onSuccess: () => setOpen(false) });
  }
  return (
    <>
      <Button leftSection={<IconCheck size={17} aria-hidden />} onClick={() => { approve.reset(); setSeen(plan.mark); setOpen(true); }}>{say("plan.approve")}</Button>
      <Modal opened={open} onClose={() => setOpen(false)} title={say("plan.approve.title", { name: plan.summary.name })} centered size="lg" closeButtonProps={{ "aria-label": say("action.cancel") }}>
        <form onSubmit={submit}>
          <Stack>
            <Text size="sm">{say("plan.approve.consequence")}</Text>
            {signed && <SignedTerms plan={plan} />}
            <Textarea label={say("field.reason.optional")} value={reason} autosize minRows={2} onChange={(event) => setReason(event.currentTarget.value)} />
            {!signed && <TextInput type="date" label={say("field.until")} description={say("plan.until.hint")} value={until} onChange={(event) => setUntil(event.currentTarget.value)} />}
            {asked.length > 0 && <Text size="sm" fw={560}>{say("plan.ranges")}</Text>}
            {asked.length > 0 && <Text size="sm" className="quiet">{say("plan.ranges.hint")}</Text>}
            {asked.map((argument) => (
              <TextInput key={argument.name} label={<span className="mono">{argument.name}</span>} placeholder={argument.site_range || String(argument.default ?? "")}
                value={ranges[argument.name] ?? ""} error={wrong === argument.name ? say("plan.range.wrong") : null}
                onChange={(event) => { const value = event.currentTarget.value; setRanges((old) => ({ ...old, [argument.name]: value })); }} />
            ))}
            {approve.isError && <Failure error={approve.error} />}
            <Group justify="flex-end">
              <Button variant="default" onClick={() => setOpen(false)}>{say("action.cancel")}</Button>
              <Button type="submit" loading={approve.isPending}>{say("plan.approve")}</Button>
            </Group>
          </Stack>
        </form>
      </Modal>
    </>
  );
}
