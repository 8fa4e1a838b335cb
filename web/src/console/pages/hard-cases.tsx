import { Button, Group, NativeSelect, NumberInput, Stack, Text, TextInput } from "@mantine/core";
import { IconSearch } from "@tabler/icons-react";
import { useMutation, useQuery } from "@tanstack/react-query";
import { useState } from "react";

import { figure } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Section } from "../../shared/ui/page";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import { Rows } from "../../shared/ui/table";
import type { HardCasesView, HardCaseView } from "../api/schema";
import { useClient } from "../api/use";

function Because({ one }: { one: HardCaseView }) {
  const { language } = useText();
  return (
    <Stack gap={2}>
      {one.parts.slice(0, 4).map((part) => (
        <Text key={part.name} size="sm" className="figures">
          {part.name} {figure(part.value, language)}{" "}
          <span className="quiet">({part.share > 0 ? "+" : ""}{figure(part.share, language)})</span>
        </Text>
      ))}
    </Stack>
  );
}

function Found({ found }: { found: HardCasesView }) {
  const { say, language } = useText();
  const named = found.cases.some((one) => one.patient !== "");
  if (found.cases.length === 0) return <Empty title={say("preview.none")} />;
  return (
    <Section flush title={say("hard.found", { count: found.cases.length })}
      hint={say("hard.median", { records: figure(found.records, language), median: figure(found.median, language) })}>
      {found.warnings.map((warning) => <Text key={warning} size="sm" px="lg">{warning}</Text>)}
      <Rows compact label={say("hard.title")} rows={found.cases} id={(one) => one.row} columns={[
        { head: say("hard.row"), cell: (one) => one.row, right: true },
        ...(named ? [{ head: say("hard.patient"), cell: (one: HardCaseView) => <span className="mono">{one.patient}</span> }] : []),
        { head: say("hard.loss"), cell: (one) => figure(one.loss, language), right: true },
        { head: say("hard.target"), cell: (one) => one.target.map((value) => figure(value, language)).join(" "), right: true },
        { head: say("hard.because"), wide: true, cell: (one) => <Because one={one} /> },
      ]} />
    </Section>
  );
}

/** The records of this site that a model is most wrong about. They are shown here and nowhere else. */
export function HardCases({ name }: { name: string }) {
  const { say } = useText();
  const client = useClient();
  const [model, setModel] = useState("");
  const [plan, setPlan] = useState("");
  const [top, setTop] = useState(20);
  const plans = useQuery({ queryKey: ["plans"], queryFn: client.plans });
  const find = useMutation({ mutationFn: () => client.hardCases(name, { model, plan, top }), gcTime: 0 });
  return (
    <Stack gap="lg">
      <Section title={say("hard.title")} hint={say("hard.hint")}>
        <Answer query={plans} lines={1}>
          {(data) => (
            <Stack maw={640}>
              <TextInput label={say("hard.model")} description={say("hard.model.hint")} required value={model} onChange={(event) => setModel(event.currentTarget.value)} />
              <NativeSelect label={say("hard.plan")} description={say("hard.plan.hint")} required value={plan} onChange={(event) => setPlan(event.currentTarget.value)}
                data={[
                  { value: "", label: say("field.choose") },
                  ...data.plans.filter((one) => one.state === "approved").map((one) => ({ value: one.digest, label: one.name })),
                ]} />
              <NumberInput label={say("hard.top")} value={top} min={1} max={200} onChange={(value) => setTop(Number(value) || 1)} />
              <Group>
                <Button leftSection={<IconSearch size={17} aria-hidden />} disabled={model === "" || plan === ""} loading={find.isPending} onClick={() => find.mutate()}>{say("hard.find")}</Button>
              </Group>
            </Stack>
          )}
        </Answer>
      </Section>
      {find.isError && <Failure error={find.error} />}
      {find.data && <Found found={find.data} />}
    </Stack>
  );
}
