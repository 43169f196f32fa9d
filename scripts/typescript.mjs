/**
 * Loaded before a test: compiles TypeScript as it is imported. Worker threads load this module, too; they would not load
 * `--import=tsx`.
 */
import { register } from 'tsx/esm/api'

register()
