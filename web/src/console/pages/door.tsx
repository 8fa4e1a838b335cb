export { Door } from "../../shared/ui/door";
