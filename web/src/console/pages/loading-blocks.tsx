import { ActionIcon, Box, Button, Group, Menu, SimpleGrid, Stack, Text, TextInput, Title } from "@mantine/core";
import { IconArrowDown, IconArrowUp, IconPlus, IconRoute, IconTrash } from "@tabler/icons-react";
import { useQuery } from "@tanstack/react-query";

import { useText } from "../../shared/text/language";
import { Answer, Empty, Failure } from "../../shared/ui/states";
import type { LoadingCheckView } from "../api/schema";
import { useClient } from "../api/use";
import { blockKinds, emptyBlock, type BlockKinds } from "../block-form";
import { draftOf, withBlock, withDescription, withField, withMoved, withoutBlock, type Block } from "../loading-text";
import { BlockInput, Wrong } from "./block-fields";

interface Editing {
  readonly yaml: string;
  readonly edit: (yaml: string) => void;
  readonly found: LoadingCheckView | undefined; // what the server says of this very text
}

function BlockCard(props: Editing & { kinds: BlockKinds; block: Block; at: number; last: boolean }) {
  const { say, knows } = useText();
  const { block, at, yaml, edit, found } = props;
  const kind = typeof block["block"] === "string" ? block["block"] : "";
  const fields = props.kinds[kind];
  const wrong = found?.block === at + 1 ? found : undefined;
  const columns = (found?.columns[at] ?? []).map((column) => column.name);
  const title = knows(`block.${kind}`) ? say(`block.${kind}`) : kind;
  const n = at + 1;
  return (
    <Box component="li" className="surface" p="md" style={{ listStyle: "none" }} aria-label={say("block.title", { n, title })}>
      <Group justify="space-between" mb="xs">
        <Stack gap={0}>
          <Title order={3} size="1rem">{say("block.title", { n, title })}</Title>
          {knows(`block.${kind}.hint`) && <Text size="sm" className="quiet">{say(`block.${kind}.hint`)}</Text>}
        </Stack>
        <Group gap={4}>
          <ActionIcon variant="subtle" color="gray" aria-label={say("block.up", { n })} disabled={at === 0} onClick={() => edit(withMoved(yaml, at, -1))}>
            <IconArrowUp size={17} stroke={1.6} aria-hidden />
          </ActionIcon>
          <ActionIcon variant="subtle" color="gray" aria-label={say("block.down", { n })} disabled={props.last} onClick={() => edit(withMoved(yaml, at, 1))}>
            <IconArrowDown size={17} stroke={1.6} aria-hidden />
          </ActionIcon>
          <ActionIcon variant="subtle" color="gray" aria-label={say("block.remove", { n })} onClick={() => edit(withoutBlock(yaml, at))}>
            <IconTrash size={17} stroke={1.6} aria-hidden />
          </ActionIcon>
        </Group>
      </Group>
      {fields ? (
        <SimpleGrid cols={{ base: 1, sm: fields.length > 1 ? 2 : 1 }}>
          {fields.map((field) => (
            <BlockInput key={field.name} kind={kind} field={field} value={block[field.name]} columns={columns}
              error={wrong?.field === field.name ? wrong.problem : ""} set={(value) => edit(withField(yaml, at, field.name, value))} />
          ))}
        </SimpleGrid>
      ) : (
        <Wrong text={say("block.unknown", { kind })} />
      )}
      {wrong && (wrong.field === "" || !fields?.some((field) => field.name === wrong.field)) && <Wrong text={wrong.problem} />}
    </Box>
  );
}

function AddBlock({ yaml, edit, kinds }: { yaml: string; edit: (yaml: string) => void; kinds: BlockKinds }) {
  const { say } = useText();
  return (
    <Menu position="bottom-start">
      <Menu.Target>
        <Button variant="default" leftSection={<IconPlus size={17} aria-hidden />}>{say("block.add")}</Button>
      </Menu.Target>
      <Menu.Dropdown>
        {Object.entries(kinds).map(([kind, fields]) => (
          <Menu.Item key={kind} onClick={() => edit(withBlock(yaml, emptyBlock(kind, fields)))}>
            <Text size="sm" fw={560}>{say(`block.${kind}`)}</Text>
            <Text size="xs" className="quiet">{say(`block.${kind}.hint`)}</Text>
          </Menu.Item>
        ))}
      </Menu.Dropdown>
    </Menu>
  );
}

/** The blocks of a plan as forms: what is changed here is changed in the text, and the other way. */
export function BlockEditor(props: Editing) {
  const { say } = useText();
  const client = useClient();
  const schema = useQuery({ queryKey: ["loading-schema"], queryFn: client.loadingSchema, staleTime: Infinity });
  const { yaml, edit, found } = props;
  const draft = draftOf(yaml);
  if (!draft.readable) return <Failure error={new Error(say("block.unreadable"))} />;
  return (
    <Answer query={schema}>
      {(answer) => {
        const kinds = blockKinds(answer);
        return (
          <Stack>
            <TextInput label={say("field.description")} value={draft.description} onChange={(event) => edit(withDescription(yaml, event.currentTarget.value))} maw={620} />
            {draft.blocks.length === 0 && <Empty title={say("block.none")} hint={say("block.none.hint")} icon={<IconRoute stroke={1.5} />} />}
            <Stack component="ol" gap="sm" p={0} m={0}>
              {draft.blocks.map((block, at) => (
                <BlockCard key={`${at} ${String(block["block"])}`} {...props} kinds={kinds} block={block} at={at} last={at === draft.blocks.length - 1} />
              ))}
            </Stack>
            {found?.problem && found.block === 0 && draft.blocks.length > 0 && <Wrong text={found.problem} />}
            <Group><AddBlock yaml={yaml} edit={edit} kinds={kinds} /></Group>
          </Stack>
        );
      }}
    </Answer>
  );
}
