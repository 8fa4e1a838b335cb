import { Button, Checkbox, Group, NativeSelect, NumberInput, Stack, Stepper, TagsInput, Text, TextInput, Textarea } from "@mantine/core";
import { useQuery } from "@tanstack/react-query";
import { useState } from "react";
import { useLocation } from "wouter";

import { useText } from "../../shared/text/language";
import { Facts, Page, Section } from "../../shared/ui/page";
import { Answer, Failure } from "../../shared/ui/states";
import type { Study } from "../api/schema";
import { useChange, useClient } from "../api/use";
import { poolable, poolingWhole, withCentre, withSites } from "../model/pooling";

const BLANK: Study = {
  name: "", purpose: "", sites: [], tags: [], controller: "", legal_basis: "", ethics: "", until: "", min_records: 0,
  retention_days: 0, residency: "", data_centre: "", pooled: [],
};
type Edit = (part: Partial<Study>) => void;

function Purpose({ study, edit, fixed }: { study: Study; edit: Edit; fixed: boolean }) {
  const { say } = useText();
  return (
    <>
      <TextInput label={say("field.name")} description={say("study.name.hint")} required disabled={fixed} value={study.name} onChange={(event) => edit({ name: event.currentTarget.value })} />
      <Textarea label={say("study.purpose")} description={say("study.purpose.hint")} required autosize minRows={3} value={study.purpose} onChange={(event) => edit({ purpose: event.currentTarget.value })} />
    </>
  );
}

function Law({ study, edit }: { study: Study; edit: Edit }) {
  const { say } = useText();
  return (
    <>
      <TextInput label={say("study.controller")} description={say("study.controller.hint")} value={study.controller ?? ""} onChange={(event) => edit({ controller: event.currentTarget.value })} />
      <TextInput label={say("study.legal_basis")} description={say("study.legal_basis.hint")} value={study.legal_basis ?? ""} onChange={(event) => edit({ legal_basis: event.currentTarget.value })} />
      <TextInput label={say("study.ethics")} description={say("study.ethics.hint")} value={study.ethics ?? ""} onChange={(event) => edit({ ethics: event.currentTarget.value })} />
      <TextInput type="date" label={say("study.until")} description={say("study.until.hint")} value={study.until ?? ""} onChange={(event) => edit({ until: event.currentTarget.value })} />
      <NumberInput label={say("study.retention")} description={say("study.retention.hint")} min={0} allowDecimal={false} value={study.retention_days ?? 0} onChange={(value) => edit({ retention_days: Number(value) || 0 })} />
      <TextInput label={say("study.residency")} description={say("study.residency.hint")} value={study.residency ?? ""} onChange={(event) => edit({ residency: event.currentTarget.value })} />
    </>
  );
}

function Sites({ study, edit }: { study: Study; edit: Edit }) {
  const { say } = useText();
  const client = useClient();
  const sites = useQuery({ queryKey: ["sites", "all"], queryFn: () => client.sites({ limit: 500 }) });
  const known = (sites.data?.items ?? []).filter((site) => site.state !== "revoked");
  const tags = [...new Set(known.flatMap((site) => site.datasets))];
  return (
    <>
      <TagsInput label={say("study.sites")} description={say("study.sites.hint")} required data={known.map((site) => site.name)} value={[...study.sites]} onChange={(chosen) => edit(withSites(study, chosen))} clearButtonProps={{ "aria-label": say("action.clear") }} />
      <TagsInput label={say("study.tags")} description={say("study.tags.hint")} required data={tags} value={[...study.tags]} onChange={(chosen) => edit({ tags: chosen })} clearButtonProps={{ "aria-label": say("action.clear") }} />
      <NumberInput label={say("study.min_records")} description={say("study.min_records.hint")} min={0} allowDecimal={false} value={study.min_records ?? 0} onChange={(value) => edit({ min_records: Number(value) || 0 })} />
      <Pooling study={study} edit={edit} />
    </>
  );
}

/** Where copies of datasets may go, and from whom; each site still decides by itself. */
function Pooling({ study, edit }: { study: Study; edit: Edit }) {
  const { say } = useText();
  const centres = [{ value: "", label: say("study.data_centre.none") }, ...study.sites.map((site) => ({ value: site, label: site }))];
  const lacking = study.data_centre && !poolingWhole(study);
  return (
    <>
      <NativeSelect label={say("study.data_centre")} description={say("study.data_centre.hint")} data={centres} value={study.data_centre ?? ""} onChange={(event) => edit(withCentre(study, event.currentTarget.value))} />
      {study.data_centre && (
        <Checkbox.Group label={say("study.pooled")} description={say("study.pooled.hint")} error={lacking ? say("study.pooled.nobody") : undefined} value={[...(study.pooled ?? [])]} onChange={(chosen) => edit({ pooled: chosen })}>
          <Stack gap="xs" pt="xs">{poolable(study).map((site) => <Checkbox key={site} value={site} label={site} />)}</Stack>
        </Checkbox.Group>
      )}
    </>
  );
}

function Check({ study }: { study: Study }) {
  const { say } = useText();
  return (
    <Facts items={[
      [say("field.name"), study.name], [say("study.purpose"), study.purpose],
      [say("study.controller"), study.controller || say("study.unsaid")], [say("study.legal_basis"), study.legal_basis || say("study.unsaid")],
      [say("study.ethics"), study.ethics || say("study.unsaid")], [say("study.until"), study.until || say("study.unsaid")],
      [say("study.retention"), study.retention_days ? say("study.days", { count: study.retention_days }) : say("study.unsaid")],
      [say("study.residency"), study.residency || say("study.unsaid")],
      [say("study.sites"), study.sites.join(", ")], [say("study.tags"), study.tags.join(", ")],
      [say("study.min_records"), String(study.min_records ?? 0)],
      [say("study.data_centre"), study.data_centre || say("study.data_centre.none")],
      [say("study.pooled"), (study.pooled ?? []).join(", ")],
    ]} />
  );
}

/** What becomes of the terms: a new draft, a changed one, or an offer to the sites anew. */
type Aim = "create" | "change" | "revise";

function Wizard({ first, aim }: { first: Study; aim: Aim }) {
  const { say } = useText();
  const client = useClient();
  const [, go] = useLocation();
  const [study, setStudy] = useState(first);
  const [step, setStep] = useState(0);
  const save = useChange((body: Study) => ({
    create: () => client.createStudy(body),
    change: () => client.changeStudy(body.name, body),
    revise: () => client.reviseStudy(body.name, body),
  })[aim]());
  const edit: Edit = (part) => setStudy((old) => ({ ...old, ...part }));
  const complete = [
    study.name.trim() !== "" && study.purpose.trim() !== "",
    true,
    study.sites.length > 0 && study.tags.length > 0 && poolingWhole(study),
    true,
  ][step];
  const keep = () => save.mutate(study, { onSuccess: (view) => go(`/studies/${encodeURIComponent(view.study.name)}`) });
  return (
    <Section>
      <Stepper active={step} onStepClick={(wanted) => { if (wanted < step) setStep(wanted); }} size="sm" wrap={false}>
        <Stepper.Step label={say("study.step.purpose")}><Stack pt="md"><Purpose study={study} edit={edit} fixed={aim !== "create"} /></Stack></Stepper.Step>
        <Stepper.Step label={say("study.step.law")}><Stack pt="md"><Law study={study} edit={edit} /></Stack></Stepper.Step>
        <Stepper.Step label={say("study.step.sites")}><Stack pt="md"><Sites study={study} edit={edit} /></Stack></Stepper.Step>
        <Stepper.Step label={say("study.step.check")}><Stack pt="md"><Check study={study} /><Text size="sm" className="quiet">{say(aim === "revise" ? "study.revise.hint" : "study.check.hint")}</Text></Stack></Stepper.Step>
      </Stepper>
      <Stack pt="lg">
        {save.isError && <Failure error={save.error} />}
        <Group justify="space-between">
          <Button variant="default" disabled={step === 0} onClick={() => setStep(step - 1)}>{say("action.back")}</Button>
          {step < 3
            ? <Button disabled={!complete} onClick={() => setStep(step + 1)}>{say("action.next")}</Button>
            : <Button loading={save.isPending} onClick={keep}>{say(aim === "revise" ? "study.revise.offer" : "study.save")}</Button>}
        </Group>
      </Stack>
    </Section>
  );
}

/** Four steps to a draft; an existing draft, or a study's terms, are changed in the same way. */
export default function WriteStudy({ name }: { name?: string }) {
  const { say } = useText();
  const client = useClient();
  const found = useQuery({ queryKey: ["study", name ?? ""], queryFn: () => client.study(name ?? ""), enabled: name !== undefined });
  return (
    <Page title={name === undefined ? say("study.new") : say("study.edit", { name })} lead={say("study.new.lead")} back={{ to: "/studies", label: say("nav.studies") }}>
      {name === undefined ? <Wizard first={BLANK} aim="create" /> : <Answer query={found}>{(view) => <Wizard first={view.study} aim={view.state === "draft" ? "change" : "revise"} />}</Answer>}
    </Page>
  );
}
