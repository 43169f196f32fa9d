/**
 * Loaded before a test: TypeScript is compiled as it is imported. Worker threads load it, too, which
 * `--import=tsx` leaves out.
 */
import { register } from 'tsx/esm/api'

register()
