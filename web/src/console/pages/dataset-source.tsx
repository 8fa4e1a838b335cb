import { Breadcrumbs, Button, Group, NativeSelect, NavLink, Stack, Tabs, Text, Textarea } from "@mantine/core";
import { IconDatabaseSearch, IconFileTypeCsv, IconFolder, IconFolderCheck } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";
import { useState, type SyntheticEvent } from "react";

import { bytes } from "../../shared/text/format";
import { useText } from "../../shared/text/language";
import { Section } from "../../shared/ui/page";
import { Answer, Empty } from "../../shared/ui/states";
import type { InspectPath } from "../api/schema";
import { useClient } from "../api/use";

interface Choosing {
  readonly busy: boolean;
  readonly choose: (source: InspectPath) => void;
}

function Files({ choose, busy, ask }: Choosing & { ask: (database: string) => void }) {
  const { say, language } = useText();
  const client = useClient();
  const [path, setPath] = useState("");
  const folder = useQuery({ queryKey: ["folder", path], queryFn: () => client.folder(path) });
  return (
    <Answer query={folder}>
      {(data) => (
        <Stack gap="xs">
          {data.path && (
            <Group justify="space-between">
              <Breadcrumbs>
                <Button variant="subtle" size="compact-sm" onClick={() => setPath(data.parent)}>{say("add.up")}</Button>
                <Text className="mono">{data.path}</Text>
              </Breadcrumbs>
              {data.tables > 1 && (
                <Button variant="default" loading={busy} leftSection={<IconFolderCheck size={17} aria-hidden />} onClick={() => choose({ path: data.path })}>
                  {say("add.whole_folder", { count: data.tables })}
                </Button>
              )}
            </Group>
          )}
          {data.folders.length + data.files.length === 0 && (
            <Empty title={say("add.empty")} hint={say(data.path ? "add.empty.hint" : "add.no_roots")} />
          )}
          {data.folders.map((name) => (
            <NavLink key={name} component="button" type="button" label={name} leftSection={<IconFolder size={19} stroke={1.6} aria-hidden />}
              onClick={() => setPath(data.path && !name.startsWith("/") ? `${data.path}/${name}` : name)} />
          ))}
          {data.files.map((file) => (
            <NavLink key={file.path} component="button" type="button" disabled={busy} label={file.name}
              description={file.database ? say("add.database_file", { size: bytes(file.bytes, language) }) : bytes(file.bytes, language)}
              leftSection={file.database ? <IconDatabaseSearch size={19} stroke={1.6} aria-hidden /> : <IconFileTypeCsv size={19} stroke={1.6} aria-hidden />}
              onClick={() => (file.database ? ask(file.path) : choose({ path: file.path }))} />
          ))}
          {data.truncated && <Text size="sm" className="quiet">{say("add.truncated")}</Text>}
        </Stack>
      )}
    </Answer>
  );
}

function Query({ choose, busy, chosen }: Choosing & { chosen: string }) {
  const { say } = useText();
  const client = useClient();
  const [database, setDatabase] = useState(chosen);
  const [select, setSelect] = useState("");
  const databases = useQuery({ queryKey: ["databases"], queryFn: client.databases });
  function submit(event: SyntheticEvent) {
    event.preventDefault();
    choose({ query: { database, select } });
  }
  return (
    <Answer query={databases}>
      {(data) => {
        const known = data.databases.map((one) => ({ value: one.name, label: `${one.name} · ${one.kind} · ${one.address}` }));
        const own = chosen ? [{ value: chosen, label: chosen }] : [];
        if (known.length + own.length === 0) return <Empty title={say("add.no_databases")} hint={say("add.no_databases.hint")} icon={<IconDatabaseSearch stroke={1.5} />} />;
        return (
          <form onSubmit={submit}>
            <Stack>
              <NativeSelect label={say("add.database")} value={database} onChange={(event) => setDatabase(event.currentTarget.value)} data={[{ value: "", label: say("field.choose") }, ...own, ...known]} />
              <Textarea label={say("add.select")} description={say("add.select.hint")} value={select} autosize minRows={5} maxRows={16} spellCheck={false}
                styles={{ input: { fontFamily: "var(--mantine-font-family-monospace)", fontSize: "0.85rem" } }} onChange={(event) => setSelect(event.currentTarget.value)} />
              <Group><Button type="submit" loading={busy} disabled={database === "" || select.trim() === ""}>{say("add.ask")}</Button></Group>
            </Stack>
          </form>
        );
      }}
    </Answer>
  );
}

/** Where the table is: a file, a folder read as one table, or a database that is asked. */
export function SourceStep({ choose, busy }: Choosing) {
  const { say } = useText();
  const [tab, setTab] = useState<string | null>("files");
  const [database, setDatabase] = useState("");
  return (
    <Section title={say("add.file")} hint={say("add.file.hint")}>
      <Tabs value={tab} onChange={setTab} keepMounted={false}>
        <Tabs.List mb="md">
          <Tabs.Tab value="files">{say("add.files")}</Tabs.Tab>
          <Tabs.Tab value="query">{say("add.query")}</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="files"><Files busy={busy} choose={choose} ask={(path) => { setDatabase(path); setTab("query"); }} /></Tabs.Panel>
        <Tabs.Panel value="query"><Query key={database} busy={busy} choose={choose} chosen={database} /></Tabs.Panel>
      </Tabs>
    </Section>
  );
}
