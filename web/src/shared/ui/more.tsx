import { Button, Center } from "@mantine/core";

import { useText } from "../text/language";

/** The button below a list that has more. */
export function More(props: { shown: boolean; busy: boolean; load: () => void }) {
  const { say } = useText();
  if (!props.shown) return null;
  return (
    <Center p="md">
      <Button variant="default" loading={props.busy} onClick={props.load}>{say("action.more")}</Button>
    </Center>
  );
}
