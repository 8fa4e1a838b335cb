import { Checkbox, Stack } from "@mantine/core";

import { useText } from "../../shared/text/language";
import { ROLES, type Role } from "../api/people";

/** Which roles: each with what it may do. */
export function RoleChoice(props: { roles: readonly string[]; change: (roles: Role[]) => void; among?: readonly Role[] }) {
  const { say } = useText();
  const offered = props.among ?? ROLES;
  return (
    <Checkbox.Group label={say("field.roles")} value={[...props.roles]} onChange={(values) => props.change(offered.filter((role) => values.includes(role)))}>
      <Stack gap="sm" mt="xs">
        {offered.map((role) => <Checkbox key={role} value={role} label={say(`role.${role}`)} description={say(`role.${role}.hint`)} />)}
      </Stack>
    </Checkbox.Group>
  );
}
