"""Services, independent of any driver: dispatching at servers, proxies at clients."""
